"""Stored results and the runner: the schema, atomic writes, and a kill at any moment."""

import json
import os
import platform
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from imm_lib import experiments, results
from imm_lib.__main__ import main
from imm_lib.experiments import catalogue, options, runner

ROOT = Path(__file__).parent.parent


def toy(
    units: int = 4, log: Path | None = None, pause: float = 0.0, broken_at: int | None = None
) -> experiments.Experiment:
    """An experiment that squares numbers, and writes down each time that it does."""

    def run(unit: dict, config: dict, device: torch.device) -> dict:
        if log is not None:
            with log.open("a") as stream:
                stream.write(f"{unit['x']}\n")
        if unit["x"] == broken_at:
            raise RuntimeError("broken on purpose")
        time.sleep(pause)
        return {"square": unit["x"] ** 2}

    return experiments.Experiment(
        name="toy",
        scales={"full": {"units": units}, "ci": {"units": 1}},
        units=lambda config, seed: [{"x": x + seed} for x in range(config["units"])],
        run=run,
        table=lambda result: [
            ["x", "square"],
            *([str(e["unit"]["x"]), str(e["numbers"]["square"])] for e in result["units"]),
        ],
    )


def test_a_run_is_a_valid_result_with_its_provenance(tmp_path):
    file = experiments.run(toy(), seed=2, where=tmp_path)
    result = results.load("toy", tmp_path)
    assert file == tmp_path / "toy.json"
    assert [entry["numbers"]["square"] for entry in result["units"]] == [4, 9, 16, 25]
    assert (
        result["config"] == {"units": 4}
        and result["seed"] == 2
        and result["device"].startswith("cpu")
    )
    assert result["peak_memory_bytes"] > 0 and result["versions"]["torch"] == torch.__version__
    assert (
        result["versions"]["machine"].endswith(" cores")
        and platform.node() not in result["versions"]["machine"]
    )
    text = file.read_text()
    assert str(ROOT) not in text and str(Path.home()) not in text


def test_a_quick_look_does_not_replace_a_full_run(tmp_path):
    experiments.run(toy(), where=tmp_path)
    assert experiments.run(toy(), scale="ci", where=tmp_path).name == "toy-ci.json"
    assert len(results.load("toy", tmp_path)["units"]) == 4


def test_resume_keeps_what_was_finished(tmp_path):
    log = tmp_path / "log"
    with pytest.raises(RuntimeError):
        experiments.run(toy(log=log, broken_at=2), where=tmp_path)
    assert not (tmp_path / "toy.json").exists()
    experiments.run(toy(log=log), where=tmp_path, resume=True)
    assert log.read_text().split() == ["0", "1", "2", "2", "3"]
    experiments.run(toy(log=log), where=tmp_path)
    assert log.read_text().split()[5:] == ["0", "1", "2", "3"]
    experiments.run(toy(log=log), where=tmp_path, resume=True)
    assert len(log.read_text().split()) == 9
    experiments.forget(toy(), where=tmp_path)
    experiments.run(toy(log=log), where=tmp_path, resume=True)
    assert len(log.read_text().split()) == 13


def test_resume_refuses_another_run(tmp_path):
    with pytest.raises(RuntimeError):
        experiments.run(toy(broken_at=1), where=tmp_path)
    before = (tmp_path / ".partial" / "toy.json").read_bytes()
    for changed, field in (({"seed": 1}, "seed"), ({"experiment": toy(units=5)}, "config")):
        with pytest.raises(ValueError, match=f"resume: toy.json was begun with another {field}"):
            experiments.run(**{"experiment": toy(), "where": tmp_path, "resume": True, **changed})
    assert (tmp_path / ".partial" / "toy.json").read_bytes() == before


def test_resume_refuses_the_units_of_another_program(tmp_path, monkeypatch):
    with pytest.raises(RuntimeError):
        experiments.run(toy(broken_at=1), where=tmp_path)
    monkeypatch.setattr(runner, "code", lambda module: "another")
    with pytest.raises(ValueError, match=r"resume: toy\.json was begun with another code"):
        experiments.run(toy(), where=tmp_path, resume=True)


@pytest.mark.parametrize(
    "damaged",
    [
        "[",
        "[]",
        '{"units": 3}',
        '{"units": [{}]}',
        '{"units": ["a"]}',
        '{"units": [{"unit": {"i": 0}, "numbers": {}}]}',
    ],
)
def test_resume_names_a_damaged_partial_file(tmp_path, damaged):
    with pytest.raises(RuntimeError):
        experiments.run(toy(broken_at=1), where=tmp_path)
    (tmp_path / ".partial" / "toy.json").write_text(damaged)
    with pytest.raises(results.ResultError, match=r"toy\.json: not "):
        experiments.run(toy(), where=tmp_path, resume=True)


def test_a_folder_that_cannot_be_written_is_found_before_the_work(tmp_path):
    log = tmp_path / "log"
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"out must be a folder that can be written, got .*file"):
        experiments.run(toy(log=log), where=tmp_path / "file")
    assert not log.exists()


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_results import toy
from imm_lib import experiments
experiments.run(toy(units=6, log=Path({log!r}), pause=0.15), where=Path({where!r}), resume=True)
"""


def test_a_kill_at_any_moment_loses_nothing_that_was_finished(tmp_path):
    log = tmp_path / "log"
    log.touch()
    code = KILLED.format(tests=str(Path(__file__).parent), log=str(log), where=str(tmp_path))
    partial, kept = tmp_path / ".partial" / "toy.json", 0
    for kill_at in (2, 4):
        process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
        while process.poll() is None and "\n" + str(kill_at) not in "\n" + log.read_text():
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        finished = len(json.loads(partial.read_text())["units"])
        assert kept < finished and finished in (kill_at, kill_at + 1)
        assert not (tmp_path / "toy.json").exists()
        kept = finished
    subprocess.run([sys.executable, "-c", code], check=True, stderr=subprocess.DEVNULL)
    assert [e["unit"]["x"] for e in results.load("toy", tmp_path)["units"]] == list(range(6))
    # only the units that a kill interrupted ran twice
    assert len(log.read_text().split()) <= 6 + 2


def test_writes_are_atomic(tmp_path, monkeypatch):
    file = tmp_path / "value.json"
    results.write_json(file, {"a": 1})

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError):
        results.write_json(file, {"a": 2})
    assert json.loads(file.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["value.json"]


def test_a_link_stays_a_link(tmp_path):
    file, other = tmp_path / "value.json", tmp_path / "elsewhere" / "kept.json"
    file.symlink_to(other)
    for value in (1, 2):
        results.write_json(file, value)
        assert file.is_symlink() and json.loads(other.read_text()) == value
    assert {path.name for path in other.parent.iterdir()} == {"kept.json"}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_numbers_are_refused(tmp_path, value):
    with pytest.raises(ValueError):
        results.write_json(tmp_path / "value.json", {"a": value})
    assert list(tmp_path.iterdir()) == []


def test_the_schema_names_file_and_field(tmp_path):
    experiments.run(toy(), where=tmp_path)
    good = results.load("toy", tmp_path)
    for field, value in (("seed", "zero"), ("units", [{"unit": {}}]), ("schema", 99), ("extra", 1)):
        (tmp_path / "toy.json").write_text(json.dumps({**good, field: value}))
        with pytest.raises(
            results.ResultError, match=r"toy\.json: .*" + ("extra" if field == "extra" else field)
        ):
            results.load("toy", tmp_path)
    infinite = json.dumps(good).replace('"seed": 0', '"seed": 1e999').encode()
    not_a_number = json.dumps({**good, "wall_s": float("nan")}).encode()
    for damaged in (b"{", not_a_number, infinite, b'"\xff"', b"[" * 100_000):
        (tmp_path / "toy.json").write_bytes(damaged)
        with pytest.raises(results.ResultError, match=r"toy\.json: not JSON"):
            results.load("toy", tmp_path)
    for name, field in (("other", "experiment"), ("toy-ci", "scale")):
        (tmp_path / f"{name}.json").write_text(json.dumps(good))
        with pytest.raises(results.ResultError, match=rf"{name}\.json: {field}: must be"):
            results.load(name, tmp_path)
        (tmp_path / f"{name}.json").unlink()
    with pytest.raises(
        results.ResultError, match=r"no result other\.json: python -m imm_lib run other"
    ):
        results.load("other", tmp_path)
    with pytest.raises(results.ResultError, match=r"python -m imm_lib run other --scale ci"):
        results.load("other-ci", tmp_path)
    with pytest.raises(ValueError, match="name must be lower-case"):
        results.load("../toy", tmp_path)


def test_bad_scale_and_device(tmp_path):
    with pytest.raises(ValueError, match="scale must be one of full, ci, got 'tiny'"):
        experiments.run(toy(), scale="tiny", where=tmp_path)
    for device in ("gpu", "meta", "mps", "cuda:99"):
        with pytest.raises(ValueError, match=rf"device must be .*'{device}'"):
            experiments.run(toy(), device=device, where=tmp_path)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match=r"device must be .* got 'cuda' with 0 of that kind"):
            experiments.run(toy(), device="cuda", where=tmp_path)


def stale(experiment: experiments.Experiment, result: dict) -> str:
    """Why a stored result is not what the experiment would make; empty where it is.

    Of an experiment for a GPU, to which minutes are added one after another, units may be missing.
    """
    config = experiment.scales[result["scale"]]
    declared = json.loads(json.dumps(config))
    other = [
        name
        for name in declared | result["config"]
        if declared.get(name) != result["config"].get(name)
    ]
    if other:
        return f"{experiment.name}: stored with another {', '.join(other)}"
    units = json.loads(json.dumps(experiment.units(config, result["seed"])))
    stored = [entry["unit"] for entry in result["units"]]
    gone = [unit for unit in stored if unit not in units]
    missing = [unit for unit in units if unit not in stored]
    if gone or (missing and not experiment.gpu):
        return f"{experiment.name}: {len(missing)} units are missing, {len(gone)} are not declared"
    return (
        "" if stored == [unit for unit in units if unit in stored] else f"{experiment.name}: order"
    )


def test_a_stale_result_is_told_by_its_units_too(tmp_path):
    result = results.load(experiments.run(toy(), where=tmp_path).stem, tmp_path)
    assert stale(toy(), result) == ""
    assert stale(toy(units=5), result) == "toy: stored with another units"
    more = replace(toy(), units=lambda *_: [{"x": x} for x in range(5)])
    assert stale(more, result) == "toy: 1 units are missing, 0 are not declared"
    assert stale(replace(more, gpu=True), result) == ""
    fewer = replace(toy(), units=lambda *_: [{"x": x} for x in range(3)])
    assert stale(fewer, result) == "toy: 0 units are missing, 1 are not declared"


def test_the_stored_results_are_valid_and_of_known_experiments():
    files = sorted((ROOT / "book" / "results").glob("*.json"))
    assert files
    known = experiments.registry()
    for file in files:
        result = results.load(file.stem, file.parent)
        if file.stem == "kills":  # of make kills, which is no experiment
            assert result["command"].startswith("python tests/tools/kills.py")
            continue
        assert known[result["experiment"]].table(result)[0]
        assert stale(known[result["experiment"]], result) == ""


def test_the_catalogue_says_what_the_modules_offer():
    for module in catalogue.CATALOGUE:
        offered = [e.name for e in catalogue._offered(module)]
        assert sorted(catalogue.CATALOGUE[module]) == sorted(offered), module
    assert list(experiments.registry()) == experiments.names()


def test_a_list_of_the_experiments_imports_none_of_them():
    code = (
        "import sys; from imm_lib.__main__ import main; main(['list']); "
        "known = {'torch', 'scipy', 'sklearn', 'imm_lib.experiments.runner'}; "
        "print(sorted(known & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *lines, found = done.stdout.splitlines()
    assert found == "[]" and len(lines) == len(experiments.names())


def test_a_function_is_not_hidden_by_the_module_of_its_name():
    code = (
        "import imm_lib; from imm_lib.device import allocations; import imm_lib.device; "
        "assert imm_lib.device().type; from imm_lib import device; assert device().type; "
        "import imm_lib as imm; imm.contexts.GroupedContexts; "
        "assert set(imm.__all__) <= set(dir(imm)); from imm_lib import *; ExactIMM; "
        "assert not hasattr(imm, 'nothing')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def offer(monkeypatch, *offered: experiments.Experiment) -> None:
    """These are all the experiments that there are."""
    lines = {experiment.name: "squares" for experiment in offered}
    monkeypatch.setattr(catalogue, "CATALOGUE", {"toys": lines})
    monkeypatch.setattr(catalogue, "_offered", lambda module: list(offered))


@pytest.fixture
def toys(monkeypatch, tmp_path):
    offer(monkeypatch, toy())
    monkeypatch.setenv("IMM_RESULTS", str(tmp_path))
    return tmp_path


def test_command_line(toys, capsys):
    assert main(["list"]) == 0
    assert "toy  squares" in capsys.readouterr().out
    assert main(["show", "toy"]) == 1
    said = capsys.readouterr().err
    assert f"no result toy.json: python -m imm_lib run toy; looked in {toys}\n" in said
    assert main(["run", "toy", "--seed", "1"]) == 0
    assert "written: toy.json" in capsys.readouterr().out
    assert main(["show", "toy"]) == 0
    assert capsys.readouterr().out.splitlines()[1] == "1  1"
    assert results.load("toy")["command"] == "python -m imm_lib run toy --seed 1"
    assert main(["run", "--all", "--scale", "ci", "--out", str(toys / "else")]) == 0
    assert (toys / "else" / "toy-ci.json").is_file()
    assert not list(toys.rglob(".partial/*"))


def test_a_configuration_with_tuples_is_resumed(toys, monkeypatch):
    log = toys / "log"
    broken = replace(
        toy(log=log, broken_at=2), scales={"full": {**toy().scales["full"], "cases": [("a", 1)]}}
    )
    offer(monkeypatch, broken)
    assert main(["run", "toy"]) == 1
    offer(monkeypatch, replace(broken, run=toy(log=log).run))
    assert main(["run", "toy", "--resume"]) == 0
    assert log.read_text().split() == ["0", "1", "2", "2", "3"]


def test_a_series_is_resumed_whole(toys, capsys, monkeypatch):
    log = toys / "log"
    first, second = toy(log=log), replace(toy(log=log, broken_at=1), name="tyro")
    offer(monkeypatch, first, second)
    assert main(["run", "--all"]) == 1
    offer(monkeypatch, first, replace(toy(log=log), name="tyro"))
    assert main(["run", "--all", "--resume"]) == 0
    assert "[1/2] toy" in (said := capsys.readouterr().err) and "[2/2] tyro" in said
    assert main(["run", "--all", "--resume"]) == 0
    assert "[1/2, the 2 with a stored run took 0 min] toy" in capsys.readouterr().err
    assert log.read_text().split()[:9] == ["0", "1", "2", "3", "0", "1", "1", "2", "3"]


def test_another_configuration_goes_to_another_folder(toys):
    assert main(["run", "toy", "--set", "units=2", "--out", str(toys / "mine")]) == 0
    result = results.load("toy", toys / "mine")
    assert result["config"] == {"units": 2} and len(result["units"]) == 2
    assert result["command"] == "python -m imm_lib run toy --set units=2"
    assert (
        experiments.find("toy").scales["full"] == {"units": 4} and not (toys / "toy.json").exists()
    )


def test_another_configuration_never_replaces_a_stored_result(toys, capsys):
    assert (
        main(["run", "toy", "--set", "units=2", "--out", str(toys)]) == 2
    )  # where the results are
    assert (
        "another one than the results'" in capsys.readouterr().err
        and not (toys / "toy.json").exists()
    )


def test_a_changed_value_is_of_its_kind():
    known = replace(
        toy(),
        scales={"full": {"units": 4, "lam": 0.1, "model": "small", "cases": ("a",), "limit": None}},
    )
    changes = {"lam": 1, "model": "large", "cases": ["b", "c"], "limit": 3}
    assert experiments.adjusted(known, "full", changes).scales["full"] == {"units": 4, **changes}
    for name, value in {"lam": "much", "units": 2.5, "model": 3, "cases": "b", "size": 3}.items():
        with pytest.raises(ValueError, match=name):
            experiments.adjusted(known, "full", {name: value})
    for value in (True, float("inf"), None):
        with pytest.raises(ValueError, match=r"lam must be like 0\.1"):
            experiments.adjusted(known, "full", {"lam": value})


@pytest.mark.parametrize(
    ("words", "pattern"),
    [
        (["run", "toy", "--set", "units=2"], "--set needs --out FOLDER, another one"),
        (
            ["run", "--all", "--set", "units=2", "--out", "mine"],
            "--set makes another experiment: name one",
        ),
        (
            ["run", "toy", "--set", "units", "--out", "mine"],
            "--set must be NAME=VALUE, got 'units'",
        ),
        (
            ["run", "toy", "--set", "size=2", "--out", "mine"],
            "toy has no 'size': it must be one of units",
        ),
        (["run", "toy", "--set", "units=NaN", "--out", "mine"], "units must be like 4, got NaN"),
        (["run", "tyo"], "name must be an experiment, got 'tyo': did you mean toy?"),
        (["show", "tyo"], "name must be an experiment, got 'tyo': did you mean toy?"),
        (["show", "quite-other"], "got 'quite-other': `python -m imm_lib list` names them"),
        (["run", "toy", "--seed", "-1"], "seed must be in [0, 2^62), got -1"),
        (["run", "toy", "--seed", "9" * 30], "seed must be in [0, 2^62), got 999"),
        (["run"], "name one experiment, or give --all"),
        (["run", "toy", "--all"], "name one experiment, or give --all"),
        (["run", "toy", "--scale", "huge"], "scale must be one of full, ci, got 'huge'"),
        (["show", "toy", "--scale", "huge"], "scale must be one of full, ci, got 'huge'"),
        (["run", "toy", "--device", "tpu9"], "device must be"),
        (["run", "toy", "--out", "/dev/null/results"], "out must be a folder that can be written"),
    ],
)
def test_mistakes_on_the_command_line(toys, capsys, words, pattern):
    assert main(words) == 2
    error = capsys.readouterr().err
    assert pattern in error and "Traceback" not in error
    assert not list(toys.glob("*.json"))


def test_a_folder_of_nobody_is_a_mistake_in_the_call(toys, capsys):
    for words in (["run", "toy"], ["show", "toy"], ["bench"], ["paper", "--minutes", "1"]):
        with pytest.raises(SystemExit, match="2"):
            main([*words, "--out", "~nobody-of-this-name/results"])
        assert "~nobody-of-this-name/results' stands for no home" in capsys.readouterr().err


def test_an_interrupt_says_how_to_go_on(toys, capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(experiments, "run", interrupt)
    assert main(["run", "toy"]) == 130
    assert "python -m imm_lib run toy --resume" in capsys.readouterr().err


def test_units_in_processes_of_their_own_give_the_same_numbers(tmp_path):
    experiment = experiments.find("grid-sizes")
    found = []
    for jobs in (1, 2):
        file = experiments.run(experiment, "ci", where=tmp_path / str(jobs), jobs=jobs)
        result = results.load(file.stem, file.parent)
        found.append([(e["unit"], e["numbers"]["exact"]) for e in result["units"]])
    assert found[0] == found[1] and len(found[0]) > 1
    with pytest.raises(ValueError, match="jobs"):
        experiments.run(experiment, "ci", where=tmp_path, jobs=0)


def test_all_leaves_out_what_needs_a_gpu(toys, monkeypatch, capsys):
    offer(monkeypatch, toy(), replace(toy(), name="big", gpu=True))
    assert main(["run", "--all", "--out", str(toys)]) == 0
    assert "left out without a GPU: big" in capsys.readouterr().err
    assert (toys / "toy.json").is_file() and not (toys / "big.json").exists()


def test_an_interval_needs_repetitions():
    for values in ([1.0], torch.ones(2, 2)):
        with pytest.raises(ValueError, match="values must be"):
            results.mean_interval(values)


def test_the_recorded_command_names_no_folder():
    from imm_lib.experiments.arguments import lasting

    words = [
        "run",
        "toy",
        "--out",
        "/somewhere",
        "--jobs",
        "2",
        "--out=there",
        "--resume",
        "--missing",
        "--anew",
        "--seed",
        "3",
    ]
    assert lasting(words) == ["run", "toy", "--seed", "3"]


def configured(name: str, scale: str = "ci", **changes) -> experiments.Experiment:
    """The experiment with values that nothing has looked at yet."""
    experiment = experiments.find(name)
    config = {**experiment.scales[scale], **changes}
    return replace(experiment, scales={**experiment.scales, scale: config})


ARMS = {"a": {"term": "moving average", "lam": 1.0}}
CANNOT_BE = [
    ("logistic-sizes", {"runs": 1}, "runs must be whole numbers of at least 2, got 1"),
    ("logistic-sizes", {"sizes": []}, "sizes must have at least one entry"),
    ("logistic-sizes", {"sizes": [81]}, "sizes must be at most 80, got 81"),
    ("logistic-sizes", {"normals": [[1, 1]]}, "normals must hold lists of 3 entries"),
    ("logistic-sizes", {"normals": [[0, 0, 0]]}, "normals must not be 0"),
    ("logistic-fixed", {"lam": float("nan")}, "lam must hold finite numbers"),
    ("logistic-fixed", {"lam": 10**400}, "lam must hold finite numbers"),
    ("logistic-lambda", {"rhos": [1.5]}, r"rhos must be in \[0, 1\], got 1.5"),
    ("logistic-stability", {"methods": ["IMM exact", "IMM exat"]}, "did you mean IMM exact"),
    ("logistic-gradients", {"momenta": [0.0]}, "momenta must be above 0"),
    ("bench-logistic", {"repeats": 0}, "repeats must be whole numbers of at least 1, got 0"),
    ("grid-figures", {"targets": []}, "targets must have at least one entry"),
    ("grid-figures", {"targets": ["softmax hot"]}, "targets must be one of none, argmax"),
    ("grid-figures", {"epochs": [2.5]}, "epochs must be whole numbers"),
    ("grid-beyond", {"settings": [{"target": "none", "ration": 0.1}]}, "did you mean ratio"),
    ("grid-beyond", {"settings": [{"target": "split", "ratio": 1.0}]}, "ratio must be below 1"),
    ("grid-divergences", {"settings": [{"target": "none", "divergence": "KL"}]}, "divergence must"),
    ("language-methods", {"corpus": "penn"}, "corpus must be one of ptb"),
    ("language-methods", {"sizes": [[100, 0]]}, "sizes must be whole numbers of at least 1"),
    ("language-methods", {"sizes": [100]}, "sizes must hold lists of 2 entries, got 100"),
    ("language-methods", {"settings": {"widht": 16}}, "did you mean width"),
    ("language-methods", {"settings": {"lr": 0.0}}, "settings/lr must be above 0"),
    ("language-methods", {"arms": {}}, "arms must have at least one entry"),
    ("language-methods", {"arms": {"a": {"term": "average"}}}, "arms/a cannot be: term must be"),
    ("language-methods", {"arms": {"a": {**ARMS["a"], "lamda": 1}}}, "arms/a cannot be: .*lamda"),
    ("language-methods", {"arms": {"a": {**ARMS["a"], "lam": -1.0}}}, "lam must hold finite"),
    ("language-snippets", {"arms": {"a": {"term": "KD"}}}, "arms/a/term must be one of none, IMM"),
    ("language-fidelity", {"texts": {}}, "texts must have at least one entry"),
    ("masked-cola", {"tasks": ["COLA"]}, "tasks must be one of .*did you mean CoLA"),
    ("masked-cola", {"lr": 0.0}, "lr must be above 0"),
    ("masked-cola", {"seeds": 0}, "seeds must be whole numbers of at least 1, got 0"),
    ("masked-choice", {"grid": {"mlm": []}}, "grid/mlm must have at least one entry"),
    ("worth-asymptotics", {"ratio": ["infinite"]}, "ratio must be numbers above 0 or 'inf'"),
    ("worth-asymptotics", {"lam": [-1.0]}, "lam/0 must hold finite numbers, none below 0, got -1"),
    ("side-several", {"n": []}, "n must have at least one entry"),
    ("side-divergences", {"divergences": ["KL"]}, "divergences must be one of"),
    ("side-divergences", {"runs": 3}, "runs must be at least 4"),
    ("side-weights", {"n": [4]}, "n must be whole numbers of at least 5, got 4"),
    ("side-tuning", {"cases": [["wine", 2]]}, "n must be at least 10, two cases in each"),
    ("side-tuning", {"cases": [["wien", 20]]}, "cases' table must be one of .*did you mean wine"),
    ("side-tuning", {"cases": [["wine", 170]]}, r"n \+ m must be at most 160 for wine"),
    ("side-shift", {"shift": [2.0]}, "shift must be at most 1, got 2"),
    ("sensors", {"seeds": 1}, "seeds must be at least 2"),
    ("sensors", {"sensors": {"worst radios": [20]}}, "did you mean worst radius"),
    ("sensors", {"lambdas": [-1]}, "lambdas/0 must hold finite numbers, none below 0, got -1"),
    (
        "sensors",
        {"cases": {"old": 500, "valid": 60, "test": 9}},
        "test must be at most 569, got 589",
    ),
    ("kneser-ney", {"splits": ["trian"]}, "splits must be one of .*did you mean train"),
    ("bench-core", {"sampling": {"k": [1]}}, "sampling/k must hold 4 and 64"),
]


@pytest.mark.parametrize(("name", "changes", "pattern"), CANNOT_BE)
def test_a_configuration_that_cannot_be_is_refused_before_any_work(
    tmp_path, name, changes, pattern
):
    def work(*_):
        raise AssertionError("work has begun")

    experiment = replace(configured(name, **changes), run=work)
    with pytest.raises(ValueError, match=pattern):
        experiments.run(experiment, "ci", where=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_every_experiment_is_checked_and_its_declared_configurations_are_sound():
    for experiment in experiments.registry().values():
        by_name = experiment.name.startswith("knowledge-")  # their names say it all
        if not by_name and experiment.name not in ("bench-grid", "bench-language", "side-several"):
            assert experiment.check is not None, experiment.name
        for scale, config in experiment.scales.items():
            options.check(experiment, scale)
            options.distinct(experiment.name, experiment.units(config, 0))


@pytest.mark.parametrize(
    ("declared", "value"),
    [
        ([1, 2], []),
        ([[1, "a"]], [[2, "b"], [3, "c"]]),
        ({"a": 1.5}, {"a": 2}),
        ({"a": {"term": "x"}, "b": {"lam": 1.0}}, {"c": {"lam": 2.0}}),
        (None, "anything"),
    ],
)
def test_values_of_one_kind(declared, value):
    options.like("x", value, declared)


@pytest.mark.parametrize(
    ("declared", "value", "pattern"),
    [
        ([1, 2], ["a"], 'x/0 must be like 1, got "a"'),
        ([[1, "a"]], [["b", 2.5]], "x/0"),
        ({"a": {"b": 1.5}}, {"a": {"b": "much"}}, "x/a/b must be like 1.5"),
        ({"a": {"b": 1.5}}, {"a": 3}, "x/a must be like"),
        ([0.5], [float("nan")], "x/0 must be like 0.5, got NaN"),
        (True, 1, "x must be like true, got 1"),
    ],
)
def test_values_of_another_kind_at_any_depth(declared, value, pattern):
    with pytest.raises(ValueError, match=pattern):
        options.like("x", value, declared)


def test_a_unit_twice_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r'toy has a unit of work twice .*\{"x": 1\}'):
        experiments.run(replace(toy(), units=lambda *_: [{"x": 1}, {"x": 1}]), where=tmp_path)
    with pytest.raises(ValueError, match="toy has no unit of work"):
        experiments.run(replace(toy(), units=lambda *_: []), where=tmp_path)


def test_a_misspelt_command_is_suggested(capsys):
    with pytest.raises(SystemExit):
        main(["shw", "toy"])
    assert "did you mean show?" in capsys.readouterr().err
