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
from imm_lib.experiments import catalogue, runner

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
        description="squares",
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


@pytest.mark.parametrize("damaged", ["[", "[]", '{"units": 3}'])
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
    for damaged in (b"{", json.dumps({**good, "wall_s": float("nan")}).encode(), b'"\xff"'):
        (tmp_path / "toy.json").write_bytes(damaged)
        with pytest.raises(results.ResultError, match=r"toy\.json: not JSON"):
            results.load("toy", tmp_path)
    for name, field in (("other", "experiment"), ("toy-ci", "scale")):
        (tmp_path / f"{name}.json").write_text(json.dumps(good))
        with pytest.raises(results.ResultError, match=rf"{name}\.json: {field}: must be"):
            results.load(name, tmp_path)
        (tmp_path / f"{name}.json").unlink()
    with pytest.raises(
        results.ResultError, match=r"no result other\.json in .*: python -m imm_lib run other"
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


def test_the_stored_results_are_valid_and_of_known_experiments():
    files = sorted((ROOT / "book" / "results").glob("*.json"))
    assert files
    known = experiments.registry()
    for file in files:
        result = results.load(file.stem, file.parent)
        assert known[result["experiment"]].table(result)[0]
        assert result["config"] == json.loads(
            json.dumps(known[result["experiment"]].scales[result["scale"]])
        )


def test_the_catalogue_says_what_the_modules_offer():
    for module in catalogue.CATALOGUE:
        offered = {e.name: e.description for e in catalogue._offered(module)}
        assert catalogue.CATALOGUE[module] == offered, module
    assert list(experiments.registry()) == experiments.names()


def offer(monkeypatch, *offered: experiments.Experiment) -> None:
    """These are all the experiments that there are."""
    lines = {experiment.name: experiment.description for experiment in offered}
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
    assert f"no result toy.json in {toys}: python -m imm_lib run toy\n" in said
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
        (["run", "toy", "--set", "units=2"], "give --out FOLDER, another one"),
        (["run", "--all", "--set", "units=2", "--out", "mine"], "name one, and give --out"),
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
    from imm_lib.__main__ import _lasting

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
    assert _lasting(words) == ["run", "toy", "--seed", "3"]
