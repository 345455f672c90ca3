"""The kit for minutes on a GPU, in small on a CPU: from a bare checkout, with as few packages as
there may be; its queue, and what joins what is stored.
"""

import math
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from imm_lib import experiments, results
from imm_lib.__main__ import main
from imm_lib.experiments import kit
from imm_lib.experiments.language import profile
from imm_lib.experiments.queue import UNKNOWN, Item, Queue, attempt
from imm_lib.experiments.runner import Task

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = ("pooch", "nltk", "pomdp_py", "psutil", "jsonschema", "matplotlib", "tqdm")


def item(kind: str, after: str = "") -> Item:
    return Item(kind, Task("toy", {"kind": kind}, {}, "cpu", None), after=after)


def kinds(queue: Queue) -> list[str]:
    return [found.kind for found in queue]


def test_the_queue_gives_in_order_what_still_can_end():
    end = time.monotonic() + 100
    queue = Queue([item("long"), item("short"), item("short")], end, {"long": 200, "short": 50})
    assert kinds(queue) == ["short", "short"]
    assert [left.kind for left in queue.items] == ["long"]


def test_the_queue_learns_from_what_is_done():
    end = time.monotonic() + UNKNOWN + 10
    queue = Queue([item("a"), item("a"), item("b")], end, {})
    first = next(queue)
    assert first.kind == "a"  # nothing is known, and a minute is left
    queue.measured(first, 1000.0)
    assert kinds(queue) == ["b"]
    queue = Queue([item("a"), item("a")], time.monotonic() + 30, {"a": 25.0})
    first = next(queue)
    queue.measured(first, 5.0)  # less than was predicted
    assert queue.seconds == {"a": 5.0}
    queue.measured(first, 3.0)
    assert queue.seconds == {"a": 5.0}
    assert kinds(Queue([item("a")], time.monotonic() + UNKNOWN - 5, {})) == []


def test_the_queue_waits_for_what_others_begin_from():
    queue = Queue([item("head"), item("rest", "head"), item("other")], time.monotonic() + 900, {})
    first = next(queue)
    assert kinds(queue) == ["other"]
    queue.measured(first, 1.0)
    assert kinds(queue) == ["rest"]


def test_an_item_that_fails_says_so_and_the_others_go_on():
    failing = Item("a", Task("kneser-ney", {"part": "none"}, {"corpus": "none"}, "cpu", None))
    assert attempt(failing).startswith("UnitError: kneser-ney, unit")


def test_the_arms_of_the_tables_are_those_of_the_experiments():
    paper = experiments.find("language-paper").scales["full"]
    assert set(kit.TABLE_1) <= set(paper["arms"])
    arms = experiments.find("language-profile").scales["full"]["arms"]
    assert set(kit.TABLE_1.values()) == set(arms)
    assert {arm: paper["arms"][arm] for arm in arms} == arms
    assert (ROOT / "tests" / f"test_{kit.TESTED[0]}.py").is_file()
    for name in kit.TABLE_2:
        config = experiments.find(name).scales["full"]
        assert config["seeds"] == 5 and list(config["examples"].values()) == [
            {"train": None, "dev": None}
        ]


def test_the_fastest_way_that_holds_the_loss():
    def way(name, **numbers):
        return {"unit": {"way": name}, "numbers": numbers}

    slow, fast = way("float32", step_s=2.0, loss=9.2), way("bfloat16", step_s=1.0, loss=9.28)
    off = way("bfloat16, compiled", step_s=0.5, loss=9.4)
    failed = way("bfloat16, compiled with CUDA graphs", failed="no compiler")
    assert profile.best([slow, fast, off, failed], 9.2) == "bfloat16"
    assert profile.best([slow, off], 9.2) == "float32" == profile.best([off, failed], 9.2)
    assert profile.best([fast], math.nan) == "float32"


def test_a_way_that_fails_is_not_taken(monkeypatch, tmp_path):
    def broken(function, **_):
        raise RuntimeError("no compiler here")

    import torch

    monkeypatch.setattr(torch, "compile", broken)
    experiment = experiments.find("language-profile")
    config = {**experiment.scales["ci"], "corpus": "topics", "lines": 200, "held_out": None}
    found = experiment.run({"way": "bfloat16, compiled"}, config, torch.device("cpu"))
    assert found == {"failed": "RuntimeError: no compiler here"}
    found = experiment.run({"way": "float32"}, config, torch.device("cpu"))
    assert 3 < found["loss"] < 4 and found["step_s"] > 0  # of 40 words, log 40 = 3.69


def test_what_a_step_calls_is_what_is_compiled(monkeypatch):
    """Not ``forward``, which no step calls."""
    import torch

    called = Counter()

    def compiled(function, mode):
        def call(*arguments):
            called[function.__name__, mode] += 1
            return function(*arguments)

        return call

    monkeypatch.setattr(torch, "compile", compiled)
    experiment = experiments.find("language-profile")
    config = {**experiment.scales["ci"], "corpus": "topics", "lines": 200, "held_out": None}
    config |= {"compared": 2, "repeats": 1}
    plain = experiment.run({"way": "bfloat16"}, config, torch.device("cpu"))
    assert not called
    found = experiment.run({"way": "bfloat16, compiled"}, config, torch.device("cpu"))
    assert set(called) == {("hidden", "default"), ("log_probs", "default")}
    assert min(called.values()) >= 3  # two compared steps, and one before the timed one
    assert found["loss"] == plain["loss"]


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """An environment in which the packages that a GPU box lacks cannot be imported."""
    folder = tmp_path_factory.mktemp("bare")
    for name in EXTRAS:
        (folder / f"{name}.py").write_text(f"raise ImportError('{name} is not here')\n")
    path = os.pathsep.join([str(folder), str(ROOT)])
    return {**os.environ, "PYTHONPATH": path, "IMM_CACHE": str(folder / "cache")}


def bare_run(environment: dict, *words: str) -> subprocess.CompletedProcess:
    run = [sys.executable, "-m", "imm_lib", *words]
    return subprocess.run(run, env=environment, capture_output=True, text=True)


@pytest.mark.needs_data("ptb")
def test_the_kit_from_a_bare_checkout_and_what_later_minutes_add(bare, tmp_path):
    words = ["paper", "--minutes", "9", "--jobs", "2", "--device", "cpu", "--scale", "ci"]
    words += ["--out", str(tmp_path)]
    first = bare_run(bare, *words, "--only", "profile,table1")
    assert first.returncode == 0, first.stderr
    assert "epochs of baseline, 2 at a time: about" in first.stdout and "failed" not in first.stdout
    done = results.load("language-paper-ci", tmp_path)
    experiment = experiments.find("language-paper")
    declared = experiment.units(experiment.scales["ci"], 0)
    assert [entry["unit"] for entry in done["units"]] == declared and len(declared) == 3
    assert experiment.table(done) and done["command"].startswith(
        "python -m imm_lib paper --minutes"
    )
    kept = {**done, "units": done["units"][1:], "device": "a GPU", "commit": "abc"}
    results.save(kept, "language-paper-ci", tmp_path)
    second = bare_run(bare, *words, "--only", "table1")
    assert second.returncode == 0, second.stderr
    joined = results.load("language-paper-ci", tmp_path)
    assert [entry["unit"] for entry in joined["units"]] == declared
    assert [e.get("made", {}).get("device") for e in joined["units"]] == [None, "a GPU", "a GPU"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "language-paper-ci.json",
        "language-profile-ci.json",
    ]


@pytest.mark.parametrize("name", ["side-several", "logistic-sizes", "grid-sizes"])
def test_experiments_run_from_a_bare_checkout(bare, tmp_path, name):
    done = bare_run(bare, "run", name, "--scale", "ci", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--minutes", "0"], "minutes must be a number above 0, got 0"),
        (["--minutes", "nan"], "minutes must be a number above 0, got nan"),
        (["--minutes", "1", "--jobs", "0"], "jobs must be at least 1, got 0"),
        (["--minutes", "1", "--only", "table3"], "stages must be one of tests, profile, table1"),
        (["--minutes", "1", "--scale", "half"], "scale must be one of full, ci, got 'half'"),
    ],
)
def test_mistakes_are_found_before_any_work(tmp_path, capsys, words, said):
    assert main(["paper", "--device", "cpu", "--out", str(tmp_path), *words]) == 2
    assert said in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_what_is_stored_of_another_configuration_is_found_before_any_work(tmp_path, capsys):
    experiment = experiments.find("masked-cola-all")
    result = {
        **{"schema": 1, "experiment": experiment.name, "scale": "ci", "config": {}, "seed": 0},
        **{"units": [], "device": "cpu", "versions": {}, "wall_s": 0, "peak_memory_bytes": 0},
        **{"commit": "", "command": "", "created": ""},
    }
    results.save(result, "masked-cola-all-ci", tmp_path)
    words = ["--minutes", "1", "--scale", "ci", "--device", "cpu", "--only", "table2"]
    assert main(["paper", "--out", str(tmp_path), *words]) == 2
    assert "masked-cola-all-ci.json is of another config" in capsys.readouterr().err
