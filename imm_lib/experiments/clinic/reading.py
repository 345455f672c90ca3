"""What the stored benchmark says: paired differences, wins and losses, harm, regret, and ranks."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from imm_lib.experiments.clinic.protocol import METHODS, cost
from imm_lib.results import mean_interval


def tasks(*stored: dict) -> dict[str, dict[str, Tensor]]:
    """By task and method: (R,) losses, the repetitions in the order of their units.

    Args:
        stored: results of map-tables, map-cube, map-grid or map-text.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for result in stored:
        for entry in result["units"]:
            task, numbers = entry["unit"]["task"], entry["numbers"]
            if "budgets" in numbers:
                cells = {f"{task}, {b} trials": m for b, m in numbers["budgets"].items()}
            else:
                cells = {task: numbers["methods"]}
            for name, by_method in cells.items():
                for method, values in by_method.items():
                    found.setdefault(name, {}).setdefault(method, []).extend(values["loss"])
    return {
        task: {
            method: torch.tensor(values, dtype=torch.float64)
            for method, values in by_method.items()
        }
        for task, by_method in found.items()
    }


class Against(NamedTuple):
    """A method beside a rival on one task: losses of the method less those of the rival, paired."""

    mean: float
    half: float  # of the 95 % interval
    error: float  # standard error


def against(by_method: dict[str, Tensor], method: str, rival: str = "plain") -> Against:
    """The paired difference of two methods on one task; raises ValueError for fewer than two runs."""
    difference = by_method[method] - by_method[rival]
    mean, half = mean_interval(difference)
    return Against(mean, half, (difference.std() / len(difference) ** 0.5).item())


class Verdict(NamedTuple):
    """A method over many tasks."""

    method: str
    tasks: int  # on which it is defined, with two runs at least
    wins: int  # better than plain, the interval without 0
    losses: int
    harmed: int  # worse than plain by more than a standard error
    rank: float  # mean, among RANKED, on the tasks where all are defined
    regret: float  # mean over tasks of the loss over the best method's, per cent of plain's
    worst: float  # the same, its maximum
    cost: int  # trainings, all choices included

    @property
    def ties(self) -> int:
        """Tasks on which the interval holds 0."""
        return self.tasks - self.wins - self.losses


def regrets(by_method: dict[str, Tensor]) -> dict[str, float]:
    """By method: its mean loss over the best method's, in per cent of the size of plain's."""
    means = {name: by_method[name].mean().item() for name in METHODS if name in by_method}
    best = min(means.values())
    scale = abs(means["plain"])
    return {name: 100 * (mean - best) / scale for name, mean in means.items()}


def verdicts(cells: dict[str, dict[str, Tensor]]) -> list[Verdict]:
    """Every method over the tasks of :func:`tasks`, in the order of METHODS."""
    usable = {task: m for task, m in cells.items() if len(m["plain"]) > 1}
    ranked = [_order(by_method) for by_method in usable.values() if _whole(by_method)]
    over = {task: regrets(by_method) for task, by_method in usable.items()}
    found = []
    for method in METHODS:
        own = {task: m for task, m in usable.items() if method in m}
        if not own:
            continue
        if method == "plain":
            apart = [Against(0.0, 0.0, 0.0) for _ in own]
        else:
            apart = [against(m, method) for m in own.values()]
        ranks = [order.index(method) + 1.0 for order in ranked if method in order]
        lost = [over[task][method] for task in own]
        found.append(
            Verdict(
                method,
                tasks=len(own),
                wins=sum(a.mean + a.half < 0 for a in apart),
                losses=sum(a.mean - a.half > 0 for a in apart),
                harmed=sum(a.mean > a.error > 0 for a in apart),
                rank=sum(ranks) / len(ranks) if ranks else math.nan,
                regret=sum(lost) / len(lost),
                worst=max(lost),
                cost=cost(method),
            )
        )
    return found


RANKED = tuple(name for name in METHODS if name != "IMM, suggested λ")
"""Methods that every table, cube and grid task has."""


def _order(by_method: dict[str, Tensor]) -> list[str]:
    """RANKED from the best to the worst on one task."""
    return sorted(RANKED, key=lambda name: by_method[name].mean().item())


def _whole(by_method: dict[str, Tensor]) -> bool:
    return all(name in by_method for name in RANKED)


def changes(cells: dict[str, dict[str, Tensor]]) -> tuple[Tensor, Tensor]:
    """By task and method of METHODS: the change against plain, and how it stands.

    Returns:
        (T, M) per cent of the size of plain's loss, NaN where a method is missing; (T, M) -1 where
        the 95 % interval is below 0 (a win), 1 where it is above, else 0.
    """
    percent = torch.full((len(cells), len(METHODS)), math.nan)
    sign = torch.zeros(len(cells), len(METHODS))
    for i, by_method in enumerate(cells.values()):
        scale = by_method["plain"].mean().abs().item() / 100
        for j, method in enumerate(METHODS):
            if method not in by_method:
                continue
            apart = against(by_method, method)
            percent[i, j] = apart.mean / scale
            sign[i, j] = float(apart.mean - apart.half > 0) - float(apart.mean + apart.half < 0)
    return percent, sign
