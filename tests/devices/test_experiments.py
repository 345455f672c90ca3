"""Every experiment computes where it is told to, and a seed means the same there as on the CPU."""

import functools
import math
import re

import pytest
import torch
from second import KIND, SECOND, second_device

from imm_lib import experiments
from imm_lib.experiments.clinic import splits
from imm_lib.experiments.finite import tuning

# dropout is drawn where the model is
_LSTM = {"width": 8, "dropout": 0.0, "batch": 4, "unroll": 5, "epochs": 2}
_TERMS = {
    "noising": {"term": "noising"},
    "reverse-KD": {"term": "reverse-KD", "lam": 1.0},
    "both": {"term": "both", "lam": 1.0},
    "serialized": {"term": "serialized", "lam": 1.0},
    "sampled": {"term": "sampled", "lam": 1.0, "k": 2, "words": 5},
}
# what makes an experiment's scale "ci" shorter still
SMALL = {
    "logistic-sizes": {"runs": 2, "steps": 5, "sizes": [5]},
    "logistic-fixed": {"runs": 2, "steps": 5, "sizes": [5]},
    "logistic-search": {"runs": 2, "steps": [5], "sizes": [5]},
    "logistic-plane": {"runs": 2, "steps": 5, "sizes": [5]},
    "logistic-columns": {"runs": 2, "steps": [5], "sizes": [5]},
    "logistic-confirmed": {"runs": 2, "steps": [5], "sizes": [5]},
    "logistic-lambda": {"runs": 2, "steps": 5},
    "logistic-quality": {"runs": 2, "steps": 5, "sizes": [5]},
    "logistic-variants": {"runs": 2, "steps": 5, "sizes": [5]},
    "logistic-stability": {"runs": 2, "steps": 5},
    "logistic-extra-data": {"runs": 2, "steps": 5},
    "logistic-gradients": {"runs": 2, "draws": 2, "momenta": [0.3]},
    "grid-figures": {"runs": 3, "epochs": [2]},
    "language-methods": {
        "held_out": 20,
        "settings": _LSTM,
        "sizes": [[40, 1]],
        "arms": _TERMS,
    },
    "language-snippets": {
        "lines": 60,
        "snippet_lines": [100],
        "held_out": 30,
        "snippet_batch": 8,
        "k": 2,
        "places": 5,
    },
    "language-fidelity": {
        "texts": {
            "topics": {
                "corpus": "topics",
                "lines": 120,
                "held_out": None,
                "settings": {**_LSTM, "scale": 0.5, "epochs": 1},
                "steps": [2],
                "passes": 1,
                "published": True,
            }
        }
    },
    "bench-language": {"width": 4, "batch": 4, "unroll": 3},
    "worth-asymptotics": {"runs": 5, "ratio": [2.0]},
    "worth-noising": {"runs": 5},
    "side-several": {"runs": 5},
    "side-divergences": {"runs": 4},
    "side-weights": {"runs": 2},
    "map-cube": {"steps": 3, "test": 32},
    "map-grid": {"choosing": 2, "reporting": 2},
    "map-tables": {"steps": 3, "cases": [["wine", "linear", [20]], ["diabetes", "network", [20]]]},
    "map-text": {"settings": {**_LSTM}, "held_out": 20, "tasks": [["LSTM, 100 lines", 60, 1]]},
    "map-decay": {"steps": 2, "test": 32},
    "map-frontier": {"runs": 2, "steps": 3},
    "sensors": {
        "seeds": 1,
        "decays": [0.1],
        "lambdas": [1.0],
        "other_bandwidths": [],
        "cross_validated": [20],
        "folds": 2,
    },
    "bench-core": {
        "sampling": {
            "k": [4, 64],
            "short": 8,
            "extended": 16,
            "width": 4,
            "labels": 5,
            "batch": 8,
        },
        "sharing": {"batches": 1, "k": 2, "width": 4, "batch": 4, "unroll": 5},
        "moving_average": {"width": 4, "layers": 1, "batch": 4, "unroll": 5, "batches": 1},
        "kneser_ney": {"train": 500, "test": 100},
    },
}
MOST_UNITS = 6


def chosen() -> list[str]:
    """Those of SMALL, and one experiment of every other function that computes units."""
    registry = experiments.registry()
    able = {name: e for name, e in registry.items() if "cuda" in e.devices}
    found = [name for name in able if name in SMALL]
    known = {able[name].run for name in found}
    for name, experiment in able.items():
        if experiment.run not in known:
            known.add(experiment.run)
            found.append(name)
    return found


def numbers(value, key: str = ""):
    """Every number of a unit but times, memory and what follows from them, with its place. A GPU
    also runs contexts that were drawn twice, since finding them would wait.
    """
    if re.search(r"_s$|seconds|ratio|bytes|sweep|growth|/contexts$|/products$", key):
        return
    if isinstance(value, dict):
        for name, part in value.items():
            yield from numbers(part, f"{key}/{name}")
    elif isinstance(value, list | tuple):
        for i, part in enumerate(value):
            yield from numbers(part, f"{key}/{i}")
    elif isinstance(value, int | float):
        yield key, value


def small(name: str):
    experiment = experiments.find(name)
    config = {**experiment.scales["ci"], **SMALL.get(name, {})}
    units = experiment.units(config, 0)
    return experiment, config, units[:: math.ceil(len(units) / MOST_UNITS)]


def run(experiment, unit, config):
    """A unit's numbers on the second device; raises AssertionError where the CPU did the work."""
    with second_device() as mode:
        found = experiment.run(unit, config, SECOND)
    here, there = (sum(mode.computed[kind].values()) for kind in ("cpu", KIND))
    assert there > here, f"the CPU computed {here} numbers, the device {there}"
    return found


@pytest.fixture(autouse=True)
def short_searches(monkeypatch):
    one = functools.partial(tuning.validation_gradient, steps=1)
    monkeypatch.setitem(tuning.RULES, "validation gradient", one)
    for module in (tuning, splits):
        monkeypatch.setattr(module, "GRID", [0.0, 1.0])


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize("name", chosen())
def test_an_experiment_computes_on_the_device_that_it_is_given(name):
    experiment, config, units = small(name)
    for unit in units:
        there = dict(numbers(run(experiment, unit, config)))
        here = dict(numbers(experiment.run(unit, config, torch.device("cpu"))))
        assert there.keys() == here.keys()
        assert there == pytest.approx(here, rel=1e-3, abs=1e-3, nan_ok=True)


# Makers that ignore the device they are told.
IGNORED = [
    ("worth-noising", "imm_lib.experiments.finite.worlds.LogitWorld.to"),
    ("side-shift", "imm_lib.experiments.clinic.splits.Split.to"),
    ("grid-beyond", "imm_lib.experiments.grid.torus.Torus.to"),
    ("logistic-sizes", "imm_lib.experiments.logistic.problem.Data.to"),
    ("sensors", "imm_lib.experiments.sensors.Task.to"),
]


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize(("name", "maker"), IGNORED)
def test_an_ignored_device_is_found(monkeypatch, name, maker):
    monkeypatch.setattr(maker, lambda made, device: made)
    experiment, config, units = small(name)
    with pytest.raises(AssertionError, match=r"the CPU computed|gradient is taken on the CPU"):
        run(experiment, units[-1], config)
