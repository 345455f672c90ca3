"""The grid experiments by name: what ``python -m imm_lib run grid-…`` computes and stores."""

import contextlib
import functools
import time
from collections.abc import Callable

import torch
from torch import Tensor

from imm_lib.divergences import NAMED, as_divergence
from imm_lib.experiments import Experiment, options
from imm_lib.experiments.grid.learning import (
    DISCOUNT,
    induced_matching,
    learn,
    play,
    policy_matching,
)
from imm_lib.experiments.grid.torus import HORIZON, Torus
from imm_lib.experiments.spread import spread
from imm_lib.experiments.table import Table
from imm_lib.targets import FastInformedBound

POMDP_WIDTH = 0.3
"""The authors' POMDP has a wider peak than their MDP (0.1); the best actions agree, softmax
policies do not.
"""

ROLLOUTS = 10
EPOCHS = [10, 20, 50, 75, 100, 125, 150, 175, 200, 250, 300, 350, 400, 450, 500]
ARMS = ["none", "argmax", "softmax 0.5", "softmax 1.0"]
MATCHINGS = {"IMM": induced_matching, "reverse-KD": policy_matching}


def ratio(epochs: int) -> float:
    """λ / (1 + λ) of the authors' program for a run of that many epochs; the paper's text says 0.2
    throughout.
    """
    return round(-0.0002 * epochs + 0.1891, 1)


def target(torus: Torus, name: str) -> Tensor | None:
    """(N, A) the policy of an agent that knows x: "none", "argmax", "split" or "softmax
    TEMPERATURE".
    """
    if name == "none":
        return None
    model = Torus(torus.size, POMDP_WIDTH, torus.device).pomdp()
    bound = FastInformedBound.solve(model, DISCOUNT)
    if name.startswith("softmax "):
        return bound.softmax(torus.belief, float(name.removeprefix("softmax ")))
    known: dict[str, Callable[[Tensor], Tensor]] = {"argmax": bound, "split": bound.split}
    if name not in known:
        raise ValueError(f"target must be none, argmax, split or softmax TEMPERATURE, got {name!r}")
    return known[name](torus.belief)


def _learned(unit: dict, config: dict, torus: Torus, at: list[int]):
    """(epoch, (R, S, A) policy, generator) at each of the epochs ``at``."""
    generator = torch.Generator().manual_seed(unit["seed"])
    share, goal = unit.get("ratio", 0.0), target(torus, unit["target"])
    steps = learn(
        torus,
        config["runs"],
        generator,
        goal,
        share / (1 - share) if goal is not None else 0.0,
        functools.partial(
            MATCHINGS[unit.get("matching", "IMM")],
            divergence=as_divergence(unit.get("divergence", "cross-entropy")),
        ),
        unit.get("lr", 0.01),
        unit.get("critic", False),
    )
    for epoch, log_pi in zip(range(1, max(at) + 1), steps, strict=False):
        if epoch in at:
            yield epoch, log_pi.exp(), generator


def _figures(unit: dict, config: dict, device: torch.device) -> dict:
    torus, cells = Torus().to(device), {}
    own = [e for e in config["epochs"] if unit["target"] == "none" or ratio(e) == unit["ratio"]]
    start = time.process_time()
    for epoch, policy, generator in _learned(unit, config, torus, own):
        rolled = torch.stack(
            [play(torus, policy, HORIZON, generator).reward.sum(1) for _ in range(ROLLOUTS)]
        ).mean(0)
        exact = torus.returns(policy)
        cells[str(epoch)] = {
            "rolled": spread(rolled),
            "exact": spread(exact),
            "rolled_30": spread(rolled[:30]),
            "exact_30": spread(exact[:30]),
        }
    return {"cells": cells, "cpu_s": round(time.process_time() - start, 3)}


def _arms(config: dict, seed: int) -> list[dict]:
    shares = sorted({ratio(e) for e in config["epochs"]})
    units = [{"seed": seed, "target": "none"}]
    return units + [
        {"seed": seed, "target": t, "ratio": r} for t in config["targets"] for r in shares
    ]


def _beyond(unit: dict, config: dict, device: torch.device) -> dict:
    torus = Torus(unit.get("size", 11)).to(device)
    steps = HORIZON * torus.size // 11
    start = time.process_time()
    found = {
        str(epoch): spread(torus.returns(policy, steps))
        for epoch, policy, _ in _learned(unit, config, torus, config["epochs"])
    }
    return {
        "exact": found,
        "optimum": torus.optimum(steps),
        "cpu_s": round(time.process_time() - start, 3),
    }


def _settings(config: dict, seed: int) -> list[dict]:
    return [{"seed": seed, **setting} for setting in config["settings"]]


def _check(config: dict) -> None:
    """Every setting's words and numbers, and targets that exist."""
    for name in config.get("targets", ()):
        _check_target("targets", name)
    for i, setting in enumerate(config.get("settings", ())):
        at = f"settings/{i}"
        options.each(
            at, setting, ("target", "ratio", "matching", "divergence", "critic", "lr", "size")
        )
        _check_target(f"{at}/target", setting.get("target"))
        options.one_of(f"{at}/matching", setting.get("matching", "IMM"), MATCHINGS)
        options.one_of(f"{at}/divergence", setting.get("divergence", "cross-entropy"), NAMED)
        if setting.get("ratio", 0) >= 1:
            raise ValueError(f"{at}/ratio must be below 1, got {setting['ratio']}")


def _check_target(name: str, word: object) -> None:
    kind, _, temperature = str(word).partition(" ")
    with contextlib.suppress(ValueError):
        if kind == "softmax" and float(temperature) > 0:
            return
    options.one_of(name, word, ("none", "argmax", "split", "softmax TEMPERATURE"))


_FIGURES = Table(
    "cells/{epochs}",
    {
        "target": "{target}",
        "epochs": "{epochs}",
        "rolled out": "{rolled/mean:.2f} ± {rolled/se:.2f}",
        "p10": "{rolled/p10:.2f}",
        "p90": "{rolled/p90:.2f}",
        "exact": "{exact/mean:.2f} ± {exact/se:.2f}",
    },
)
_FURTHER = Table(
    "exact/{epochs}",
    {"setting": "{unit}", "optimum": "{optimum:.2f}"},
    across=("{epochs} epochs", "{mean:.2f} ± {se:.2f}"),
)

RATIOS = [0.1, 0.2, 0.4, 0.6, 0.8]
_BEYOND = [
    {"target": "none"},
    *(
        {"target": t, "ratio": r, "matching": m}
        for m in MATCHINGS
        for t in ("argmax", "split")
        for r in RATIOS
    ),
    {"target": "none", "critic": True},
    {"target": "none", "critic": True, "lr": 0.03},
    *(
        {"target": "split", "ratio": r, "matching": m, "critic": True, "lr": 0.03}
        for m in MATCHINGS
        for r in (0.2, 0.4, 0.6)
    ),
]
_SIZES = [
    {"size": size, **setting}
    for size in (21, 51)
    for setting in (
        {"target": "none"},
        {"target": "split", "ratio": 0.6, "matching": "IMM"},
        {"target": "split", "ratio": 0.6, "matching": "reverse-KD"},
        {"target": "split", "ratio": 0.2, "matching": "reverse-KD"},
    )
]

COMPARED = (
    *("cross-entropy", "reverse KL", "Jensen-Shannon", "alpha 0.5", "total variation"),
    *("squared Hellinger", "Cauchy-Schwarz", "balanced", "Plackett-Luce"),
)
"""Without the forward divergence of Kullback and Leibler, whose gradient is the cross-entropy's."""

_DIVERGENCES = [
    {"target": target, "ratio": r, "matching": m, "divergence": name}
    for target in ("softmax 0.5", "split")
    for m in MATCHINGS
    for name in COMPARED
    # infinite, where the target has zeros
    if not (target == "split" and name in ("reverse KL", "balanced"))
    for r in RATIOS
]


def _further(name: str, full: dict, ci: dict) -> Experiment:
    """Settings by their exact returns, whose horizon grows with the torus: 2 N steps."""
    scales = {"full": full, "ci": ci}
    return Experiment(name, scales, _settings, _beyond, _FURTHER, check=_check)


EXPERIMENTS = [
    Experiment(
        name="grid-figures",
        scales={
            "full": {"runs": 300, "epochs": EPOCHS, "targets": ARMS[1:]},
            "ci": {"runs": 30, "epochs": [10, 20], "targets": ["argmax"]},
        },
        units=_arms,
        run=_figures,
        table=_FIGURES,
        check=_check,
    ),
    _further(
        "grid-beyond",
        {"runs": 100, "epochs": [50, 100, 200, 500], "settings": _BEYOND},
        {"runs": 10, "epochs": [5, 10], "settings": _BEYOND[:3]},
    ),
    _further(
        "grid-divergences",
        {"runs": 30, "epochs": [50, 200], "settings": _DIVERGENCES},
        {"runs": 3, "epochs": [2], "settings": _DIVERGENCES[:2]},
    ),
    _further(
        "grid-sizes",
        {"runs": 30, "epochs": [50, 100, 200, 500], "settings": _SIZES},
        {"runs": 3, "epochs": [2], "settings": _SIZES[:2]},
    ),
]
