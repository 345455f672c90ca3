"""Real side information: few full examples and a restricted model from elsewhere, by every method.

What the data are is in :mod:`imm_lib.experiments.side.sources`, what is trained in
:mod:`imm_lib.experiments.side.networks`.
"""

from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from imm_lib.experiments import Experiment, options, reading
from imm_lib.experiments.side.networks import Network, evaluate, left_out, train
from imm_lib.experiments.side.sources import check_sizes, draw
from imm_lib.premise import surprise
from imm_lib.results import mean_interval

SCORES = ("loss", "accuracy")

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


def cases(result: dict) -> dict[tuple, list[dict]]:
    """The runs of each case, by its (data, kind, n) and, if there is one, shift; in the order of
    the splits.
    """
    found: dict[tuple, list[dict]] = {}
    for entry in result["units"]:
        key = tuple(value for name, value in entry["unit"].items() if name != "seed")
        found.setdefault(key, []).append(entry["numbers"])
    return found


def chosen(runs: list[dict], family: str, score: str = "loss") -> Tensor:
    """(splits,) test scores of a method at the settings that are best in loss on the other half of
    the splits.

    Args:
        runs: of one case.
        family: "baseline", "interpolation", "reverse-KD", "IMM" or "target"; or one setting by its
        whole name.
        score: "loss" in nats or "accuracy".

    Raises:
        ValueError: fewer than two splits, or an unknown family.
    """
    names = [name for name in runs[0]["methods"] if family in (name, name.split(",")[0])]
    if not names or len(runs) < 2:
        raise ValueError(
            f"family must be a method of at least two runs, got {family!r} and {len(runs)} runs"
        )
    read = {
        s: torch.tensor([[r["methods"][n][s] for n in names] for r in runs], dtype=torch.float64)
        for s in SCORES
    }
    found = torch.empty(len(runs), dtype=torch.float64)
    for half in range(2):
        own, other = slice(half, None, 2), slice(1 - half, None, 2)
        found[own] = read[score][own, read["loss"][other].mean(0).argmin()]
    return found


def change(runs: list[dict], family: str, leave_out: str | None = None) -> Tensor:
    """(splits,) test loss less the baseline's, in nats; settings are :func:`chosen`.

    Args:
        runs: of one case.
        family: of :func:`chosen`.
        leave_out: how the names of methods end that are not to be chosen from.
    """
    kept = [
        {
            "methods": {
                m: v
                for m, v in run["methods"].items()
                if leave_out is None or not m.endswith(leave_out)
            }
        }
        for run in runs
    ]
    return chosen(kept, family) - chosen(kept, "baseline")


def gain(runs: list[dict], family: str, leave_out: str | None = None) -> tuple[float, float]:
    """The mean over the splits of :func:`change`, and half of its 95 % interval."""
    return mean_interval(change(runs, family, leave_out))


class Shifted(NamedTuple):
    """Runs of one data set by the share of side labels that were moved: M shares, R splits."""

    share: Tensor  # (M, 1)
    z: Tensor  # (M, R) how much the training labels surprise the target
    # (M, R) of the target over the induced model on left-out training pairs, in standard errors
    lead: Tensor
    change: Tensor  # (M, R) of the test loss by IMM, in nats


def by_shift(result: dict) -> dict[str, Shifted]:
    """The runs of a result with shifts, by data set."""
    found: dict[str, list[tuple[Tensor, ...]]] = {}
    for (data, _, _, share), runs in cases(result).items():
        z, ahead = (
            torch.tensor([run[k] for run in runs], dtype=torch.float64)
            for k in ("surprise", "lead")
        )
        found.setdefault(data, []).append((torch.tensor([share]), z, ahead, change(runs, "IMM")))
    return {
        data: Shifted(*map(torch.stack, zip(*rows, strict=True))) for data, rows in found.items()
    }


def harm(measure: Tensor, change: Tensor, edges: list[float]) -> Tensor:
    """What a measurement says of the change of the loss.

    Args:
        measure: (M, R).
        change: (M, R), in nats.
        edges: (B + 1,) of its bins, each without its lower end.

    Returns:
        (B, 4) how many runs are in each bin, the share that was harmed, their mean change, and the
        worst.
    """
    rows = [change[(measure > low) & (measure <= high)] for low, high in pairwise(edges)]
    return torch.stack(
        [
            torch.stack([torch.tensor(len(r)).to(r), (r > 0).to(r).mean(), r.mean(), r.max()])
            for r in rows
        ]
    )


def mean(runs: list[dict], method: str, score: str = "loss") -> float:
    """Mean test score of one method at one setting over the splits."""
    return sum(run["methods"][method][score] for run in runs) / len(runs)


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

EXPERIMENTS = [
    Experiment(
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
        units=_units,
        run=_compare,
        table=_TABLE,
        check=_check,
    ),
    Experiment(
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
        units=_units,
        run=_compare,
        table=_TABLE,
        check=_check,
    ),
    Experiment(
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
        units=_units,
        run=_compare,
        table=_TABLE,
        check=_check,
    ),
]
