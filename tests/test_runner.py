"""The runner among other processes: locks, kills, signals, workers, merged results; and the command
line's words.
"""

import errno
import io
import json
import os
import platform
import shutil
import signal
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_results import offer, toy

from imm_lib import experiments, origin, results
from imm_lib.__main__ import main
from imm_lib.experiments import merge, resume, runner, workers

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def stored(where: Path) -> dict:
    return results.load("toy", where)


def squares(result: dict) -> dict[int, int]:
    return {e["unit"]["x"]: e["numbers"]["square"] for e in result["units"]}


def wait_for(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it has not happened"
        time.sleep(0.02)


SLOW = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_results import toy
from imm_lib import experiments
experiments.run(toy(units=40, pause=0.1), where=Path({where!r}), resume={resume})
"""


def slow(where: Path, resume: bool = False) -> subprocess.Popen:
    """A process that runs forty units into a folder."""
    code = SLOW.format(tests=str(ROOT / "tests"), where=str(where), resume=resume)
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)


def test_a_second_run_beside_the_first_is_refused_and_a_kill_frees_the_folder(tmp_path):
    partial, many = tmp_path / ".partial" / "toy.json", toy(units=40)
    first = slow(tmp_path)
    wait_for(lambda: partial.is_file() and len(json.loads(partial.read_text())["units"]) >= 3)
    for options in ({}, {"resume": True}, {"anew": True}):
        with pytest.raises(ValueError, match=r"toy is being run into .* by another process"):
            experiments.run(many, where=tmp_path, **options)
    experiments.run(toy(), scale="ci", where=tmp_path)  # another name is free
    first.send_signal(signal.SIGKILL)
    first.wait()
    kept = len(json.loads(partial.read_text())["units"])
    assert 3 <= kept < 40
    with pytest.raises(ValueError, match=rf"has finished {kept} of 40 units; go on with --resume"):
        experiments.run(many, where=tmp_path)
    assert len(json.loads(partial.read_text())["units"]) == kept
    log = tmp_path / "log"
    experiments.run(toy(units=40, log=log), where=tmp_path, resume=True)
    assert len(log.read_text().split()) == 40 - kept
    assert squares(stored(tmp_path)) == {x: x**2 for x in range(40)}


def test_two_processes_that_begin_at_once_do_the_work_once(tmp_path):
    both = [slow(tmp_path), slow(tmp_path)]
    assert sorted(process.wait() for process in both) == [0, 1]
    assert squares(stored(tmp_path)) == {x: x**2 for x in range(40)}


def test_a_checkpoint_that_is_none_says_so(tmp_path):
    file = tmp_path / "run.pt"
    resume.save(file, {"weights": torch.zeros(3)})
    whole = file.read_bytes()
    for damaged in (
        b"",
        whole[:10],
        whole[: len(whole) // 2],
        b"hello " * 50,
        b"PK\3\4" + bytes(99),
    ):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"a file that train has written, got run\.pt"):
            resume.load(file)
    with pytest.raises(FileNotFoundError):
        resume.load(tmp_path / "other.pt")


def test_a_checkpoint_goes_on_with_all_that_is_random(tmp_path):
    file, parts = tmp_path / "run.pt", [torch.nn.Linear(2, 2)]
    sources = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    kept = resume.Checkpoint(file, {"lr": 0.1, "text": "a"}, parts, torch.device("cpu"), sources)
    assert kept.read() is None
    with torch.random.fork_rng(devices=[]):
        kept.write({"epochs": 3})
        weight = parts[0].weight.detach().clone()
        drawn = [torch.rand(3), *(torch.rand(3, generator=source) for source in sources)]
        torch.nn.init.zeros_(parts[0].weight)
        assert kept.read() == {"epochs": 3}
        assert torch.equal(parts[0].weight, weight)
        again = [torch.rand(3), *(torch.rand(3, generator=source) for source in sources)]
    assert all(torch.equal(a, b) for a, b in zip(drawn, again, strict=True))
    torch.nn.init.zeros_(parts[0].weight)
    other = resume.Checkpoint(file, {"lr": 0.1, "text": "b"}, parts, torch.device("cpu"), sources)
    words = r"checkpoint must be of text = 'b', got run\.pt of another text, 'a'"
    with pytest.raises(ValueError, match=words):
        other.read()
    for content in ({"epochs": 3}, torch.zeros(3)):
        resume.save(file, content)
        with pytest.raises(ValueError, match="checkpoint must be one of a training"):
            kept.read()
    assert not parts[0].weight.any()
    resume.Checkpoint(None, {}, parts, torch.device("cpu")).write(3)


def test_what_was_begun_is_not_discarded_unasked(tmp_path):
    """A checkpoint of hours, with no unit finished yet."""

    def broken(unit, config, device):
        resume.save(resume.checkpoint("run"), {"epochs": 7})
        raise RuntimeError("broken on purpose")

    def going_on(unit, config, device):
        file = resume.checkpoint("run")
        return {"epochs": resume.load(file)["epochs"] if file.is_file() else 0}

    one = replace(toy(units=1), units=lambda *_: [{"x": 0}])
    with pytest.raises(runner.UnitError):
        experiments.run(replace(one, run=broken), where=tmp_path)
    with pytest.raises(ValueError, match="has begun 1 of these units; go on with --resume"):
        experiments.run(replace(one, run=going_on), where=tmp_path)
    experiments.run(replace(one, run=going_on), where=tmp_path, resume=True)
    assert stored(tmp_path)["units"][0]["numbers"] == {"epochs": 7}
    with pytest.raises(runner.UnitError):
        experiments.run(replace(one, run=broken), where=tmp_path)
    experiments.run(replace(one, run=going_on), where=tmp_path, anew=True)
    assert stored(tmp_path)["units"][0]["numbers"] == {"epochs": 0}
    experiments.forget(one, where=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["toy.json"]


def test_a_checkpoint_of_other_code_is_cleaned_away(tmp_path, monkeypatch):
    def broken(unit, config, device):
        resume.save(resume.checkpoint("run"), {})
        raise RuntimeError("broken on purpose")

    with pytest.raises(runner.UnitError):
        experiments.run(replace(toy(), run=broken), where=tmp_path)
    assert len(list((tmp_path / ".partial" / "toy").iterdir())) == 1
    monkeypatch.setattr(runner, "code", lambda module: "another")
    experiments.run(toy(), where=tmp_path)
    assert not (tmp_path / ".partial" / "toy").exists()


def test_the_digest_is_of_the_core_what_is_shared_and_the_experiments_own_room(tmp_path):
    shutil.copytree(ROOT / "imm_lib", tmp_path / "imm_lib")
    root = tmp_path / "imm_lib"
    before = resume.code("grid", root)
    for changed, same in {
        "plotting.py": True,
        "__main__.py": True,
        "experiments/language/terms.py": True,
        "experiments/sensors/runs.py": True,
        "experiments/grid/torus.py": False,
        "experiments/timing.py": False,
        "targets/kneser_ney.py": False,
        "induced.py": False,
    }.items():
        text = (root / changed).read_text(encoding="utf-8")
        (root / changed).write_text(text + "# a change\n", encoding="utf-8")
        assert (resume.code("grid", root) == before) == same, changed
        (root / changed).write_text(text, encoding="utf-8")
    assert resume.code("grid", root) == before == resume.code("grid")
    apart = resume.code("clinic", root)
    with (root / "experiments/finite/worlds.py").open("a", encoding="utf-8") as file:
        file.write("# a change\n")  # of a room that the map imports
    assert resume.code("clinic", root) != apart
    assert resume.code("grid", root) == before


# Workers


def double(number: int) -> int:
    if number == 13:
        raise ValueError("unlucky")
    if number == 17:
        os._exit(1)
    return 2 * number


def linger(file: str) -> None:
    Path(file).write_text(str(os.getpid()))
    time.sleep(600)


def test_workers_answer_every_task_and_pass_on_what_is_raised():
    assert sorted(workers.answers(double, range(5), 2)) == [(n, 2 * n) for n in range(5)]
    assert list(workers.answers(double, [], 2)) == []
    with pytest.raises(ValueError, match="unlucky"):
        list(workers.answers(double, [1, 13, 2], 1))
    with pytest.raises(RuntimeError, match="the process at work on 17 died"):
        list(workers.answers(double, [17], 2))


def test_a_task_may_be_chosen_when_an_answer_is_there():
    class Growing:
        """Two tasks at first; each answer of the first round brings another."""

        def __init__(self):
            self.waiting = [1, 2]

        def __iter__(self):
            return self

        def __next__(self):
            if not self.waiting:
                raise StopIteration
            return self.waiting.pop()

    tasks, found = Growing(), []
    for task, answer in workers.answers(double, tasks, 2):
        found.append(answer)
        if task < 10:
            tasks.waiting.append(task + 10)
    assert sorted(found) == [2, 4, 22, 24]


def test_what_is_at_work_at_the_end_of_the_time_is_stopped(tmp_path):
    start = time.monotonic()
    assert list(workers.answers(linger, [str(tmp_path / "pid")], 1, start + 6)) == []
    assert time.monotonic() - start < 30


ORPHANS = """
import sys
sys.path.insert(0, {tests!r})
from test_runner import linger
from imm_lib.experiments import workers
if __name__ == "__main__":
    list(workers.answers(linger, [{file!r}], 1))
"""


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{process}/stat")
    return not (state.is_file() and state.read_text().rpartition(")")[2].split()[0] == "Z")


def test_a_killed_run_leaves_no_process_behind(tmp_path):
    script, pid = tmp_path / "script.py", tmp_path / "pid"
    script.write_text(ORPHANS.format(tests=str(ROOT / "tests"), file=str(pid)))
    process = subprocess.Popen([sys.executable, str(script)], env=ENVIRONMENT)
    wait_for(lambda: pid.is_file() and pid.read_text())
    worker = int(pid.read_text())
    assert alive(worker)
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_for(lambda: not alive(worker), 10)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_signal_stops_units_at_once(tmp_path, number, code, jobs):
    """The units of this run take a minute; the signal goes to the first process alone."""
    words = ["run", "grid-sizes", "--out", str(tmp_path), "--jobs", jobs]
    process = subprocess.Popen(
        [sys.executable, "-m", "imm_lib", *words],
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: (tmp_path / ".partial" / "grid-sizes.lock").exists())
    time.sleep(5)
    start = time.monotonic()
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code, said
    assert time.monotonic() - start < 15
    assert (
        "stopping" in said
        and f"stopped; to go on: python -m imm_lib {' '.join(words)} --resume" in said
    )
    assert "Traceback" not in said and not list(tmp_path.glob("*.json"))


# Results


def test_files_have_the_mode_that_the_umask_leaves(tmp_path):
    for mask in (0o077, 0o002, 0o000):
        before = os.umask(mask)
        try:
            results.write_bytes(tmp_path / f"{mask}", b"")
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / f"{mask}").stat().st_mode) == 0o666 & ~mask
    (tmp_path / "own").touch(mode=0o600)
    results.write_bytes(tmp_path / "own", b"new")
    assert stat.S_IMODE((tmp_path / "own").stat().st_mode) == 0o600


def test_what_a_killed_writer_left_goes_with_the_next_write(tmp_path):
    file = tmp_path / "value.json"
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / f"{results._beside(file)}{dead.pid}.abc").touch()
    (tmp_path / f"{results._beside(file)}{os.getpid()}.abc").touch()  # of one that is at work
    results.write_json(file, {})
    assert len(list(tmp_path.iterdir())) == 2


NAMES = st.sampled_from([*results.SCHEMA["properties"], "unit", "numbers", "made", "other"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.floats(-2, 2) | st.sampled_from(["", "a"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)
MADE = {"device": "cpu", "versions": {}, "commit": "", "created": ""}
SOUND = {
    **{"schema": 1, "experiment": "toy", "scale": "full", "config": {}, "seed": 0, "wall_s": 1.5},
    **{"peak_memory_bytes": 1, "command": "", **MADE},
    "units": [{"unit": {}, "numbers": {}, "wall_s": 0}, {"unit": {}, "numbers": {}, "wall_s": 1}],
}


@given(st.data(), st.sampled_from(["top", "unit", "made", "drop"]), NAMES, VALUES)
def test_the_check_agrees_with_jsonschema(data, where, name, value):
    result = json.loads(json.dumps(SOUND))
    unit = result["units"][-1]
    unit["made"] = dict(MADE)
    place = {"top": result, "unit": unit, "made": unit["made"], "drop": result}[where]
    if where == "drop":
        place.pop(data.draw(st.sampled_from(sorted(place))))
    else:
        place[name] = value
    valid = jsonschema.Draft202012Validator(results.SCHEMA).is_valid(result)
    try:
        results.check(result)
    except results.ResultError:
        assert not valid
    else:
        assert valid


def test_the_units_that_are_missing_are_added_to_a_stored_result(tmp_path):
    log = tmp_path / "log"
    one = toy(units=5)
    few = replace(one, units=lambda config, seed: [{"x": x} for x in (4, 1, 7)])
    experiments.run(few, where=tmp_path)
    experiments.forget(few, where=tmp_path)
    before = stored(tmp_path)
    results.save({**before, "device": "a GPU", "commit": "abc"}, "toy", tmp_path)
    whole = replace(toy(units=5, log=log), units=lambda *_: [{"x": x} for x in range(5)])
    experiments.run(whole, where=tmp_path, missing=True)
    result = stored(tmp_path)
    assert log.read_text().split() == ["0", "2", "3"]
    assert squares(result) == {x: x**2 for x in range(5)}  # in order, and 7 is not declared
    made = {e["unit"]["x"]: e.get("made", {}).get("device") for e in result["units"]}
    assert made == {0: None, 1: "a GPU", 2: None, 3: None, 4: "a GPU"}
    assert result["units"][1]["made"]["commit"] == "abc" and result["device"].startswith("cpu")
    experiments.run(whole, where=tmp_path, missing=True)  # nothing is missing
    assert stored(tmp_path) == result
    with pytest.raises(ValueError, match=r"toy\.json is of another config"):
        experiments.run(toy(units=6), where=tmp_path, missing=True)
    with pytest.raises(ValueError, match=r"toy\.json is of another seed"):
        experiments.run(whole, seed=1, where=tmp_path, missing=True)
    assert stored(tmp_path) == result


def test_missing_units_of_nothing_are_all(tmp_path):
    experiments.run(toy(), where=tmp_path, missing=True)
    assert len(stored(tmp_path)["units"]) == 4


def test_units_say_where_they_were_when_they_were_not_together(tmp_path, monkeypatch):
    seen = iter(["one GPU", "cpu, 1 threads", "one GPU", "one GPU"])
    monkeypatch.setattr(origin, "device_name", lambda device: next(seen))
    result = results.load(experiments.run(toy(), where=tmp_path).stem, tmp_path)
    assert result["device"] == "one GPU"
    assert [e.get("made", {}).get("device") for e in result["units"]] == [
        *(None, "cpu, 1 threads", None, None)
    ]


def test_an_experiment_runs_where_it_can(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="device must be cpu for toy, got 'cuda'"):
        experiments.run(replace(toy(), devices=("cpu",)), device="cuda", where=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_versions_of_what_was_imported_are_stored(monkeypatch):
    monkeypatch.setitem(sys.modules, "ot", type("ot", (), {"__version__": "9.9"}))
    monkeypatch.delitem(sys.modules, "transformers", raising=False)
    found = origin.versions()
    assert found["POT"] == "9.9" and "transformers" not in found


def test_outside_a_checkout_the_commit_is_what_the_environment_says(tmp_path, monkeypatch):
    shutil.copy(ROOT / "imm_lib" / "origin.py", tmp_path)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    code = "import origin; print(origin.commit())"
    found = []
    for said in ({}, {"IMM_COMMIT": "abc"}):
        run = [sys.executable, "-c", code]
        environment = {"PATH": os.environ["PATH"], **said}
        found.append(
            subprocess.run(
                run, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
            ).stdout.strip()
        )
    assert found == ["unknown", "abc"]


# The command line


def command(*words: str, **environment: str) -> subprocess.CompletedProcess:
    run = [sys.executable, "-m", "imm_lib", *words]
    return subprocess.run(run, env={**ENVIRONMENT, **environment}, capture_output=True)


@pytest.fixture
def toys(monkeypatch, tmp_path):
    offer(monkeypatch, toy())
    monkeypatch.setenv("IMM_RESULTS", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        (lambda x: {"loss": float("nan")}, 'toy, unit {"x": 0}: ValueError: numbers/loss is nan'),
        (lambda x: {"a": [{"b": float("inf")}]}, "numbers/a/0/b is inf"),
        (lambda x: {"a": torch.ones(1)}, "numbers/a is a Tensor, of which JSON knows nothing"),
        (lambda x: 1 / x, 'toy, unit {"x": 0}: ZeroDivisionError: division by zero (test_runner'),
    ],
)
def test_a_unit_that_fails_is_named_and_the_code_is_1(toys, monkeypatch, capsys, numbers, said):
    offer(monkeypatch, replace(toy(), run=lambda unit, config, device: numbers(unit["x"])))
    assert main(["run", "toy"]) == 1
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error
    assert not list(toys.glob("*.json"))


def test_a_mistake_in_the_call_is_2(toys, capsys):
    assert main(["run", "toy", "--set", "units=0", "--out", str(toys / "mine")]) == 2
    assert "toy has no unit of work in this configuration" in capsys.readouterr().err


def test_an_interrupted_run_is_resumed_or_discarded_on_request(toys, monkeypatch, capsys):
    offer(monkeypatch, toy(broken_at=2))
    assert main(["run", "toy"]) == 1
    offer(monkeypatch, toy())
    assert main(["run", "toy"]) == 2
    assert "finished 2 of 4 units; go on with --resume, or discard them with --anew" in (
        capsys.readouterr().err
    )
    assert main(["run", "toy", "--anew"]) == 0
    assert [path.name for path in toys.iterdir()] == ["toy.json"]


def test_a_table_that_cannot_be_made_is_no_mistake_in_the_call(toys, monkeypatch, capsys):
    def table(result):
        raise ValueError("values must be (R,) with R at least 2")

    offer(monkeypatch, replace(toy(), table=table))
    assert main(["run", "toy"]) == 1
    said = capsys.readouterr()
    assert "written: toy.json" in said.out
    assert "toy.json: its table cannot be made: ValueError: values must be" in said.err


def test_show_takes_the_name_of_the_file(toys, capsys):
    assert main(["run", "toy", "--scale", "ci"]) == 0
    for words in (["toy-ci"], ["toy", "--scale", "ci"]):
        capsys.readouterr()
        assert main(["show", *words]) == 0
        assert capsys.readouterr().out.splitlines() == ["x  square", "0  0"]
    assert main(["show", "toy-co"]) == 2
    assert "scale must be one of full, ci, got 'co'" in capsys.readouterr().err


def test_the_tilde_is_the_home_folder(toys, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("IMM_RESULTS", "~/found")
    assert main(["run", "toy"]) == 0 and (tmp_path / "home" / "found" / "toy.json").is_file()
    assert main(["run", "toy", "--out", "~/mine"]) == 0
    assert (tmp_path / "home" / "mine" / "toy.json").is_file()


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "utf-8"])
def test_a_list_goes_through_a_terminal_without_greek(encoding):
    done = command("list", PYTHONIOENCODING=encoding)
    assert done.returncode == 0 and done.stderr == b""
    assert len(done.stdout.decode(encoding).splitlines()) == len(experiments.names())


def test_a_run_is_written_whatever_the_terminal(tmp_path):
    words = ("run", "worth-noising", "--scale", "ci", "--out", str(tmp_path))
    done = command(*words, PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and b"\\u03bb" in done.stdout
    assert (tmp_path / "worth-noising-ci.json").is_file()


def test_a_closed_pipe_is_quiet(tmp_path):
    run = [sys.executable, "-m", "imm_lib"]
    for words in (["list"], ["run", "worth-noising", "--scale", "ci", "--out", str(tmp_path)]):
        read, write = os.pipe()
        os.close(read)
        process = subprocess.Popen(
            [*run, *words], stdout=write, stderr=subprocess.PIPE, env=ENVIRONMENT, text=True
        )
        os.close(write)
        _, said = process.communicate()
        assert process.returncode == 0 and "rror" not in said, said
    assert (tmp_path / "worth-noising-ci.json").is_file()


def test_version_and_the_default_folder_are_told(tmp_path):
    import imm_lib

    assert command("--version").stdout.decode() == f"imm_lib {imm_lib.__version__}\n"
    for folder, environment in (
        (ROOT / "book" / "results", {}),
        (tmp_path, {"IMM_RESULTS": str(tmp_path)}),
    ):
        told = "".join(command("run", "--help", **environment).stdout.decode().split())
        assert f"bydefault{folder}(" in told
    assert b"book/results of its repository" in command("--help").stdout


def test_a_word_of_the_configuration_that_is_near(toys, capsys):
    assert main(["run", "toy", "--set", "unit=2", "--out", "mine"]) == 2
    assert "toy has no 'unit': it must be one of units: did you mean units?" in (
        capsys.readouterr().err
    )


def test_an_interval_without_scipy_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    with pytest.raises(ImportError, match=r"pip install 'imm_lib\[experiments\]'"):
        results.mean_interval([1.0, 2.0])


def test_progress_without_tqdm_says_the_same_in_lines(monkeypatch, capsys):
    from imm_lib.experiments.progress import Plain, bar

    monkeypatch.setitem(sys.modules, "tqdm", None)
    with bar(total=3, initial=1, desc="toy", unit="unit") as progress:
        assert isinstance(progress, Plain)
        progress.set_postfix(valid="3.0")
        progress.update()
    assert capsys.readouterr().err == "toy: 2/3 unit, valid 3.0\n"
    with bar(total=3, leave=False, disable=None) as progress:
        progress.update()
    assert capsys.readouterr().err == ""


def test_a_merged_result_needs_finite_numbers():
    with pytest.raises(ValueError, match="numbers/a is nan"):
        merge.check_numbers({"a": float("nan")}, "numbers")
    merge.check_numbers({"a": [1, 2.5, "x", None, True]}, "numbers")
    assert platform.node() not in json.dumps(origin.versions())


@pytest.mark.skipif(os.name != "posix", reason="closes streams in a shell")
def test_closed_streams_end_no_run(tmp_path):
    line = f"{sys.executable} -m imm_lib run logistic-sizes --scale ci --out {tmp_path} >&- 2>&-"
    found = subprocess.run(line, shell=True, cwd=ROOT, check=False)
    assert found.returncode == 0 and results.load("logistic-sizes-ci", tmp_path)["units"]


def test_a_progress_bar_that_cannot_be_written_ends_no_run(tmp_path, monkeypatch, capsys):
    offer(monkeypatch, toy())

    class Full(io.StringIO):
        def write(self, text):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sys, "stderr", Full())
    assert main(["run", "toy", "--out", str(tmp_path)]) == 0
    assert "written: toy.json" in capsys.readouterr().out
    assert main(["run", "tyo"]) == 2  # which nobody is told
    monkeypatch.setattr(sys, "stdout", Full())
    monkeypatch.setattr(sys, "stderr", told := io.StringIO())
    assert main(["list"]) == 1
    assert told.getvalue() == "error: standard output: No space left on device\n"
