"""Mutation tests of the core: how many small faults, put into the code one at a time, do the tests
find?

``make mutate`` runs mutmut on a copy under ``_build/mutation`` for each module, with the tests
that are about it. It goes on where it was stopped, prints the score of every module and the
survivors, and writes them to ``tests/mutation/score.json``. Reasons for survivors that no test can
find are in ``tests/mutation/reasons.toml``. How many tests a mutant is shown is said in
``budget.py``.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WHERE = ROOT / "_build" / "mutation"
STORE = ROOT / "tests" / "mutation"
TESTS = {
    "divergences": ("divergences", "zeros", "mutants", "fuzz"),
    "induced": ("induced", "mutants", "accepted", "class_weights", "bad_input", "fuzz"),
    "sums": ("induced", "rounding", "segments", "mutants", "accepted", "fuzz"),
    "contexts": ("contexts", "accepted", "mutants", "bad_input", "fuzz"),
    "estimators": ("estimators", "weights", "accepted", "bad_input", "fuzz"),
    "surrogates": ("estimators", "weights", "segments", "mutants", "bad_input", "fuzz"),
    "corrections": ("fused",),
    "segments": ("segments", "estimators", "weights", "fused"),
    "sequential": ("estimators", "divergences", "segments"),
    "baselines": ("baselines", "estimators", "weights", "bad_input", "fuzz"),
    "targets/table": ("accepted", "mutants", "estimators", "baselines", "bad_input", "fuzz"),
    "targets/kneser_ney": ("kneser_ney", "segments", "fuzz"),
    "targets/fast_informed_bound": ("stopping", "grid", "fuzz"),
    "worth": ("worth", "uses", "mutants", "fuzz"),
    "information": ("worth", "fuzz"),
    "premise": ("worth", "class_weights", "mutants", "fuzz"),
    "clipping": ("clipping", "baselines", "fuzz"),
    "tabular": ("tabular", "fuzz"),
    "transport": ("divergences", "zeros", "fuzz"),
    "mixed": ("contexts", "from_sklearn", "fuzz"),
    "precision": ("contexts", "estimators"),
    "coarse": ("means", "fuzz"),
    "uses": ("uses",),
    "checks": ("accepted", "bad_input", "mutants", "weights", "fuzz"),
    "distributions": ("accepted", "bad_input", "mutants", "weights", "fuzz"),
}
"""The modules of the core, the most important first, and where their tests are."""
# several processes, compiled graphs (which refuse mutmut's switches), minutes, or random input
SLOW = " and ".join(
    f"not {word}"
    for word in (
        *("processes", "beyond_two_to_the_24", "every_experiment", "papers_numbers"),
        *("one_graph", "compile", "anything", "without_pandas", "samples_have_no_bias"),
        *("of_a_simulation", "an_offset_moves", "samples_is_unbiased"),
    )
)
# a line of a message: what a sentence says is for people, and tests name its words
MESSAGES = [r'^\s*f?"', r"^\s*raise \w+\(f?\"", r"warnings\.warn", r"^\s*assert "]
KILLED, OPEN = ("killed", "timeout", "segfault", "suspicious"), ("survived", "no tests")
SURVIVED, NO_TESTS = 0, 33  # mutmut's exit statuses


def folder(module: str) -> Path:
    return WHERE / module.replace("/", "-")


def text_of(test: Path) -> str:
    """A test file; a fault that few examples find is found by 25."""
    return re.sub(r"max_examples=\d+", "max_examples=25", test.read_text(encoding="utf-8"))


def copied(module: str) -> None:
    """The sources and tests, of which one module is to be mutated, with their configuration."""
    where = folder(module)
    for name in TESTS[module]:
        path = Path("tests") / f"test_{name}.py"
        if (where / path).is_file() and text_of(ROOT / path) != text_of(where / path):
            # which tests run a function has to be found out again
            (where / "mutants" / "mutmut-stats.json").unlink(missing_ok=True)
    # a folder that is not there when Python starts is not looked into later
    (where / "mutants" / "tests" / "tools").mkdir(parents=True, exist_ok=True)
    for name in ("imm_lib", "tests"):
        shutil.copytree(ROOT / name, where / name, dirs_exist_ok=True)
    for path in (where / "tests").glob("*.py"):
        path.write_text(text_of(path), encoding="utf-8")
    options = {
        "source_paths": ["imm_lib"],
        "only_mutate": [f"imm_lib/{module}.py"],
        "do_not_mutate_patterns": MESSAGES,
        "also_copy": ["imm_lib"],
        "process_isolation": "fork",
        "timeout_constant": 60.0,
        "pytest_add_cli_args": [
            *("-p", "no:cacheprovider", "-p", "budget", "-k", SLOW, "-o", "addopts=", "-x"),
        ],
        "pytest_add_cli_args_test_selection": [
            *(f"tests/test_{name}.py" for name in TESTS[module]),
            "tests/devices/test_core.py",
        ],
    }
    lines = [f"{key} = {json.dumps(value)}" for key, value in options.items()]
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    text += "\n[tool.mutmut]\n" + "\n".join(lines) + "\n"
    (where / "pyproject.toml").write_text(text, encoding="utf-8")


def forget(module: str, statuses: set[int]) -> None:
    """Mutants with one of these outcomes are to be tried again."""
    for path in (folder(module) / "mutants").rglob("*.py.meta"):
        held = json.loads(path.read_text(encoding="utf-8"))
        found = held["exit_code_by_key"].items()
        held["exit_code_by_key"] = {k: None if v in statuses else v for k, v in found}
        path.write_text(json.dumps(held, indent=4), encoding="utf-8")


# The run that measures the tests has shown that they pass: not again before each piece.
RUN = """
from mutmut import __main__ as mutmut
from mutmut.workers.isolation import ForkRunner

ForkRunner.run_clean_tests = lambda self, tests: 0
mutmut.cli()
"""


def outcomes() -> dict[str, str]:
    """What became of every mutant, by its name; empty before there are any."""
    from mutmut.stats import status_by_exit_code

    held = {}
    for path in WHERE.rglob("*.py.meta"):
        held |= json.loads(path.read_text(encoding="utf-8"))["exit_code_by_key"]
    return {name: status_by_exit_code[code] for name, code in held.items()}


def change(name: str) -> list[str]:
    """The lines that a mutant takes out and puts in."""
    from mutmut.mutation.diff_apply import get_diff_for_mutant

    with contextlib.chdir(folder(module(name))):
        told = get_diff_for_mutant(name, path=f"imm_lib/{module(name)}.py")
    return [line for line in told.splitlines() if re.match(r"[-+](?![-+]{2} )", line)]


def run(module: str, children: str, seconds: float) -> None:
    """Try the mutants of a module that have no outcome yet, as far as the time goes."""
    where = folder(module)
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    paths = where / "mutants", where / "mutants" / "tests" / "tools"
    here = {**os.environ, **threads, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    command = [sys.executable, "-c", RUN, "run", "--max-children", children]
    with (
        (where / "run.log").open("w", encoding="utf-8") as log,
        contextlib.suppress(subprocess.TimeoutExpired),
    ):
        subprocess.run(command, cwd=where, env=here, stdout=log, stderr=log, timeout=seconds)


def module(name: str) -> str:
    """The module of a mutant: ``imm_lib.targets.table.x_as_target__mutmut_3``."""
    return name.split(".x", 1)[0].removeprefix("imm_lib.").rsplit(".xǁ", 1)[0].replace(".", "/")


def reason(name: str, lines: list[str], reasons: list[dict]) -> str | None:
    """Why a survivor is none to find: that of the first entry whose pattern the change fits."""
    text = " ".join(" ".join(lines).split())
    for entry in reasons:
        if entry.get("module", module(name)) == module(name) and re.search(entry["change"], text):
            return entry["reason"]
    return None


def main() -> int:
    """Run, print, store; the exit status says whether the goal is reached."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("modules", nargs="*", default=list(TESTS), help="such as targets/table")
    parser.add_argument("--children", default="1", help="mutants tried at the same time")
    parser.add_argument("--minutes", type=float, default=1e4, help="stop after so long, and report")
    parser.add_argument("--again", action="store_true", help="try survivors again, by newer tests")
    parser.add_argument("--report", action="store_true", help="of what has been tried, run nothing")
    options = parser.parse_args()
    end = time.monotonic() + 60 * options.minutes
    for one in [] if options.report else options.modules:
        if (left := end - time.monotonic()) <= 0:
            break
        print(f"{one}: mutmut's own account is {folder(one) / 'run.log'}", flush=True)
        copied(one)
        if options.again:
            forget(one, {SURVIVED, NO_TESTS})
        run(one, options.children, left)
    found = outcomes()
    reasons_file = STORE / "reasons.toml"
    reasons = tomllib.loads(reasons_file.read_text(encoding="utf-8")).get("reason", [])
    survivors = []
    for name in sorted(key for key, value in found.items() if value in OPEN):
        lines = change(name)
        survivors.append({"mutant": name, "change": lines, "reason": reason(name, lines, reasons)})
    excused = Counter(module(s["mutant"]) for s in survivors if s["reason"])
    table = {}
    for one in sorted({module(name) for name in found}):
        counts = Counter(value for name, value in found.items() if module(name) == one)
        killed = sum(counts[kind] for kind in KILLED)
        table[one] = {
            "killed": killed,
            "survived": sum(counts[kind] for kind in OPEN),
            "with a reason": excused[one],
            "not tried": counts["not checked"],
        }
        tried = killed + table[one]["survived"]
        print(f"{one:32} {killed:5} of {tried:5} killed, {excused[one]} excused")
    killed = sum(row["killed"] for row in table.values())
    tried = killed + sum(row["survived"] for row in table.values())
    if not tried:
        print(f"No mutant was tried; run.log in a folder of {WHERE} says why.")
        return 1
    share = killed / tried
    print(f"\n{killed} of {tried} mutants killed: {100 * share:.1f} %")
    for survivor in survivors:
        if not survivor["reason"]:
            print(f"\n{survivor['mutant']}", *survivor["change"], sep="\n  ")
    stored = {"score": share, "killed": killed, "tried": tried, "modules": table}
    stored["not begun"] = [one for one in TESTS if one not in table]
    stored["survivors"] = survivors
    text = json.dumps(stored, indent=1, ensure_ascii=False) + "\n"
    (STORE / "score.json").write_text(text, encoding="utf-8")
    return 0 if share >= 0.9 else 1


if __name__ == "__main__":
    sys.exit(main())
