"""Real side information: few full examples and a restricted model from elsewhere, by every method.

What the data are is in :mod:`imm_lib.experiments.real.sources`, what is trained in
:mod:`imm_lib.experiments.real.training`.
"""

from functools import partial

import torch

from imm_lib.experiments import Experiment, options, reading
from imm_lib.experiments.real.readings import SCORES
from imm_lib.experiments.real.sources import check_sizes, draw
from imm_lib.experiments.real.training import Network, evaluate, left_out, train
from imm_lib.premise import surprise

SHARES = [0.01, 0.03, 0.1, 0.3, 0.5, 0.7, 0.9]
"""Weights of interpolation."""


def _compare(unit: dict, config: dict, device: torch.device) -> dict:
    """Every method's test accuracy and loss, the target's alone, and how much the training labels
    surprise it.

    With "folds" also the target's lead on left-out pairs.
    """
    problem = draw(
        unit["data"], unit["n"], config["m"][unit["data"]], unit["seed"], unit.get("shift", 0.0)
    ).to(device)

    def fit(method: str, lam: float = 0.0, bandwidth: float = 1.0) -> Network:
        return train(
            problem, unit["kind"], method, lam, bandwidth, config["steps"], seed=unit["seed"]
        )

    plain = fit("baseline")
    found = {"baseline": evaluate(plain, problem)}
    for share in SHARES:
        found[f"interpolation, {share:g}"] = evaluate(plain, problem, share)
    for lam in config["lam"]:
        found[f"reverse-KD, λ = {lam:g}"] = evaluate(fit("reverse-KD", lam), problem)
    for lam, bandwidth in config["imm"]:
        found[f"IMM, λ = {lam:g}, bandwidth {bandwidth:g}"] = evaluate(
            fit("IMM", lam, bandwidth), problem
        )
    found["target"] = evaluate(plain, problem, 1.0)
    z = surprise(problem.target(problem.train.short), problem.train.label).z
    checked = {"surprise": z}
    if "folds" in config:
        checked["lead"] = left_out(
            problem, unit["kind"], config["folds"], config["steps"], seed=unit["seed"]
        )
    return {"methods": found, **checked}


def _units(config: dict, seed: int) -> list[dict]:
    return [
        {"data": data, "kind": kind, "n": n, **extra, "seed": seed + s}
        for data, kind, sizes in config["cases"]
        for n in sizes
        for extra in (
            [{"shift": shift} for shift in config["shift"]] if "shift" in config else [{}]
        )
        for s in range(config["splits"])
    ]


def _check(config: dict) -> None:
    options.rows("cases", config["cases"], 3)
    for data, kind, sizes in config["cases"]:
        options.one_of("cases", kind, ("logistic", "network", "convolutions"))
        if (kind == "convolutions") != (data == "digits"):
            raise ValueError(
                f"cases must have convolutions for digits and for nothing else, got {data}"
            )
        check_sizes(data, sizes, config["m"])
        if config.get("folds", 2) > min(sizes) // 2:
            raise ValueError(
                f"folds must be of two examples each, got {config['folds']} of {sizes}"
            )
    options.filled("lam", config["lam"])
    options.rows("imm", config["imm"], 2)
    options.filled("shift", config.get("shift", [0]))
    options.at_most("shift", config.get("shift"), 1)


_TABLE = partial(reading.listed, columns=SCORES, against="baseline", where="methods/{method}")
_M = {"breast cancer": 300, "wine": 60, "digits": 800}
_LAM = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0]
_FULL = {
    "m": _M,
    "splits": 20,
    "steps": 200,
    "lam": _LAM,
    "imm": [[lam, 1.0] for lam in (0.1, 0.3, 1.0, 3.0)],
}
_CI = {"m": _M, "splits": 2, "steps": 5, "lam": [1.0], "imm": [[1.0, 1.0]]}

_experiment = partial(Experiment, units=_units, run=_compare, table=_TABLE, check=_check)

EXPERIMENTS = [
    _experiment(
        name="side-tables",
        scales={
            "full": {
                **_FULL,
                "cases": [
                    (data, kind, [20, 40, 80] if data == "wine" else [20, 40, 80, 160])
                    for data in ("breast cancer", "wine")
                    for kind in ("logistic", "network")
                ],
            },
            "ci": {**_CI, "cases": [("wine", "logistic", [20])]},
        },
    ),
    _experiment(
        name="side-digits",
        scales={
            "full": {
                **{key: _FULL[key] for key in ("m", "splits")},
                "steps": 100,
                "lam": [0.01, 0.03, 0.1, 0.3, 1.0],
                "imm": [
                    [0.1, 0.03],
                    [0.3, 0.03],
                    [1.0, 0.03],
                    *([lam, b] for b in (0.1, 0.3) for lam in (0.3, 1.0, 3.0)),
                ],
                "cases": [("digits", "convolutions", [50, 100, 200, 500])],
            },
            "ci": {**_CI, "cases": [("digits", "convolutions", [50])]},
        },
    ),
    _experiment(
        name="side-shift",
        scales={
            "full": {
                **_FULL,
                "lam": [1.0],
                "imm": [[1.0, 1.0]],
                "cases": [("breast cancer", "logistic", [40]), ("wine", "logistic", [40])],
                "shift": [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0],
                "folds": 5,
            },
            "ci": {**_CI, "cases": [("wine", "logistic", [20])], "shift": [0.0, 1.0], "folds": 5},
        },
    ),
]
