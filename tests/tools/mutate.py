"""Mutation tests of the core: how many small faults, put into the code one at a time, do the tests
find?

``make mutate`` runs mutmut on a copy under ``_build/mutation``, goes on where it was stopped,
prints the score of every module and the survivors, and writes them to
``tests/mutation/score.json``. Reasons for survivors that no test can or should find are in
``tests/mutation/reasons.toml``. How many tests a mutant is shown is said in ``budget.py``.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WHERE = ROOT / "_build" / "mutation"
STORE = ROOT / "tests" / "mutation"
CORE = (
    *("baselines", "checks", "clipping", "coarse", "contexts", "corrections", "divergences"),
    *("estimators", "induced", "information", "mixed", "precision", "premise", "segments"),
    *("sequential", "surrogates", "tabular", "transport", "uses", "worth"),
    *("targets/fast_informed_bound", "targets/kneser_ney", "targets/table"),
)
TESTS = (
    *("accepted", "bad_input", "baselines", "class_weights", "clipping", "contexts", "divergences"),
    *("estimators", "from_sklearn", "fused", "fuzz", "grid", "induced", "kneser_ney", "means"),
    *("mutants", "segments", "stopping", "tabular", "uses", "weights", "worth", "zeros"),
)
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


def copied() -> None:
    """The sources and tests to mutate, with a configuration of their own."""
    # a folder that is not there when Python starts is not looked into later
    (WHERE / "mutants" / "tests" / "tools").mkdir(parents=True, exist_ok=True)
    for name in ("imm_lib", "tests"):
        shutil.copytree(ROOT / name, WHERE / name, dirs_exist_ok=True)
    for path in (WHERE / "tests").glob("*.py"):  # a fault that few examples find is found by 25
        text = path.read_text(encoding="utf-8")
        path.write_text(re.sub(r"max_examples=\d+", "max_examples=25", text), encoding="utf-8")
    options = {
        "source_paths": ["imm_lib"],
        "only_mutate": [f"imm_lib/{module}.py" for module in CORE],
        "do_not_mutate_patterns": MESSAGES,
        "also_copy": ["imm_lib"],
        "process_isolation": "fork",
        "timeout_constant": 60.0,
        "pytest_add_cli_args": [
            *("-p", "no:cacheprovider", "-p", "budget", "-k", SLOW, "-o", "addopts=", "-x"),
        ],
        "pytest_add_cli_args_test_selection": [
            *(f"tests/test_{name}.py" for name in TESTS),
            "tests/devices/test_core.py",
        ],
    }
    lines = [f"{key} = {json.dumps(value)}" for key, value in options.items()]
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    text += "\n[tool.mutmut]\n" + "\n".join(lines) + "\n"
    configured = WHERE / "pyproject.toml"
    if configured.is_file() and configured.read_text(encoding="utf-8") != text:
        # which tests run a function was found out for the modules of then
        (WHERE / "mutants" / "mutmut-stats.json").unlink(missing_ok=True)
        forget({NO_TESTS})
    configured.write_text(text, encoding="utf-8")


def forget(statuses: set[int]) -> None:
    """Mutants with one of these outcomes are to be tried again."""
    for path in (WHERE / "mutants").rglob("*.py.meta"):
        held = json.loads(path.read_text(encoding="utf-8"))
        found = held["exit_code_by_key"].items()
        held["exit_code_by_key"] = {k: None if v in statuses else v for k, v in found}
        path.write_text(json.dumps(held, indent=4), encoding="utf-8")


# The run that measures the tests has shown that they pass: they are not run again before each piece.
RUN = """
from mutmut import __main__ as mutmut
from mutmut.workers.isolation import ForkRunner

ForkRunner.run_clean_tests = lambda self, tests: 0
mutmut.cli()
"""


def mutmut(*arguments: str, **options) -> subprocess.CompletedProcess:
    """mutmut in the copy, where its own imm_lib is the one to import."""
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    here = {"PYTHONPATH": f"{WHERE / 'mutants'}:{WHERE / 'mutants' / 'tests' / 'tools'}"}
    command = [sys.executable, "-c", RUN, *arguments]
    return subprocess.run(command, cwd=WHERE, env={**os.environ, **threads, **here}, **options)


def outcomes() -> dict[str, str]:
    """What became of every mutant, by its name; empty before there are any."""
    from mutmut.stats import status_by_exit_code

    held = {}
    for path in (WHERE / "mutants").rglob("*.py.meta"):
        held |= json.loads(path.read_text(encoding="utf-8"))["exit_code_by_key"]
    return {name: status_by_exit_code[code] for name, code in held.items()}


def change(name: str) -> list[str]:
    """The lines that a mutant takes out and puts in."""
    from mutmut.mutation.diff_apply import get_diff_for_mutant

    with contextlib.chdir(WHERE):
        told = get_diff_for_mutant(name)
    return [line for line in told.splitlines() if re.match(r"[-+](?![-+]{2} )", line)]


def run(modules: list[str], children: str, minutes: float) -> None:
    """Try the mutants of some modules that have no outcome yet, as far as the time goes."""
    found = outcomes()
    names = [n for n, value in found.items() if value == "not checked" and module(n) in modules]
    if found and not names:
        return
    print(f"mutmut's own account: {WHERE / 'run.log'}", flush=True)
    with (WHERE / "run.log").open("w", encoding="utf-8") as log:
        command = ("run", "--max-children", children, *names)
        with contextlib.suppress(subprocess.TimeoutExpired):
            mutmut(*command, stdout=log, stderr=log, timeout=60 * minutes)


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
    parser.add_argument("modules", nargs="*", default=list(CORE), help="such as targets/table")
    parser.add_argument("--children", default="1", help="mutants tried at the same time")
    parser.add_argument("--minutes", type=float, default=1e4, help="stop after so long, and report")
    parser.add_argument("--again", action="store_true", help="try survivors again, by newer tests")
    parser.add_argument("--report", action="store_true", help="of what has been tried, run nothing")
    options = parser.parse_args()
    if not options.report:
        copied()
        if options.again:
            forget({SURVIVED, NO_TESTS})
        run(options.modules, options.children, options.minutes)
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
        print(f"No mutant was tried; {WHERE / 'run.log'} says why.")
        return 1
    share = killed / tried
    print(f"\n{killed} of {tried} mutants killed: {100 * share:.1f} %")
    for survivor in survivors:
        if not survivor["reason"]:
            print(f"\n{survivor['mutant']}", *survivor["change"], sep="\n  ")
    stored = {"score": share, "killed": killed, "tried": tried, "modules": table}
    stored["survivors"] = survivors
    text = json.dumps(stored, indent=1, ensure_ascii=False) + "\n"
    (STORE / "score.json").write_text(text, encoding="utf-8")
    return 0 if share >= 0.9 else 1


if __name__ == "__main__":
    sys.exit(main())
