"""What the stored benchmark says: paired differences, wins and losses, harm, regret, and ranks."""

import math
import statistics
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
    chance: float  # two-sided p-value of a difference of 0, by Student's t

    @property
    def verdict(self) -> int:
        """-1 where the 95 % interval is below 0 (a win), 1 where it is above, else 0."""
        return int(self.mean - self.half > 0) - int(self.mean + self.half < 0)

    def told(self, digits: int = 3) -> str:
        """The mean with its interval."""
        return f"{self.mean:+.{digits}f} ± {self.half:.{digits}f}"


def against(by_method: dict[str, Tensor], method: str, rival: str = "plain") -> Against:
    """The paired difference of two methods on one task; raises ValueError for fewer than two
    runs.
    """
    from scipy.stats import t as student

    difference = by_method[method] - by_method[rival]
    mean, half = mean_interval(difference)
    error = (difference.std() / len(difference) ** 0.5).item()
    if error == 0:
        return Against(mean, half, error, float(mean == 0))
    chance = 2 * student.sf(abs(mean) / error, len(difference) - 1)
    return Against(mean, half, error, float(chance))


def surviving(chances: dict, level: float = 0.05) -> set:
    """The keys whose p-values Holm's correction for all of them leaves below ``level``.

    >>> sorted(surviving({"a": 0.01, "b": 0.04, "c": 0.03}))  # 0.03 is above 0.05 / 2
    ['a']
    """
    found = set()
    for i, key in enumerate(sorted(chances, key=chances.__getitem__)):
        if chances[key] > level / (len(chances) - i):
            break
        found.add(key)
    return found


RIVALS = ("interpolation", "offset", "reverse distillation")
"""Tuned uses of the target beside which IMM has to stand."""


class Beside(NamedTuple):
    """IMM, its settings chosen by folds, beside plain training and beside a tuned rival."""

    ours: Against  # IMM less plain
    rival: str  # the best of RIVALS on this task, picked afterwards in its favour
    other: Against  # the rival less plain
    lead: Against  # IMM less the rival

    def told(self, digits: int = 3) -> str:
        """Both changes against plain training, in the loss's unit, with their intervals."""
        ours, other = self.ours.told(digits), self.other.told(digits)
        return f"IMM {ours}, {self.rival} {other}"

    def apart(self, digits: int = 3) -> str:
        """The difference of the two, paired, which decides."""
        return f"IMM less {self.rival} {self.lead.told(digits)}"


def beside(by_method: dict[str, Tensor]) -> Beside:
    """IMM and its best rival on one task."""
    known = [name for name in RIVALS if name in by_method]
    rival = min(known, key=lambda name: by_method[name].mean().item())
    return Beside(
        against(by_method, "IMM"),
        rival,
        against(by_method, rival),
        against(by_method, "IMM", rival),
    )


def counted(cells: dict[str, dict[str, Tensor]]) -> list[str]:
    """In how many tasks IMM is better, worse and level, as lines: the front page has them, too."""
    usable = [by_method for by_method in cells.values() if len(by_method["plain"]) > 1]
    every = [beside(by_method) for by_method in usable]
    untuned = "IMM, λ = 1"
    compared = {
        "IMM at λ = 1, untuned, beside plain training": [against(m, untuned) for m in usable],
        "IMM at λ = 1, untuned, beside the best tuned rival": [
            against(m, untuned, b.rival) for m, b in zip(usable, every, strict=True)
        ],
        "IMM, λ by folds, beside plain training": [b.ours for b in every],
        "IMM, λ by folds, beside the best tuned rival": [b.lead for b in every],
    }
    lines = []
    for what, found in compared.items():
        better, worse = (sum(a.verdict == sign for a in found) for sign in (-1, 1))
        level = len(found) - better - worse
        lines.append(f"{what}: {better} better, {worse} worse, {level} level")
    return lines


class Verdict(NamedTuple):
    """A method over many tasks."""

    method: str
    tasks: int  # on which it is defined, with two runs at least
    wins: int  # better than plain, the interval without 0
    losses: int
    sure: int  # wins that survive Holm's correction for every method on every task
    harmed: int  # worse than plain by more than a standard error
    rank: float  # mean, among RANKED, on the tasks where all are defined
    regret: float  # median over tasks of the loss over the best method's, per cent of plain's
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
    apart = {
        (task, method): against(by_method, method)
        for task, by_method in usable.items()
        for method in METHODS
        if method in by_method
    }
    rivals = {key: a.chance for key, a in apart.items() if key[1] != "plain"}
    kept = surviving(rivals)
    found = []
    for method in METHODS:
        own = {task: a for (task, name), a in apart.items() if name == method}
        if not own:
            continue
        ranks = [order.index(method) + 1.0 for order in ranked if method in order]
        lost = [over[task][method] for task in own]
        found.append(
            Verdict(
                method,
                tasks=len(own),
                wins=sum(a.verdict < 0 for a in own.values()),
                losses=sum(a.verdict > 0 for a in own.values()),
                sure=sum(a.mean < 0 and (task, method) in kept for task, a in own.items()),
                harmed=sum(a.mean > a.error > 0 for a in own.values()),
                rank=sum(ranks) / len(ranks) if ranks else math.nan,
                regret=statistics.median(lost),
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


def changes(cells: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, Against]]:
    """By method and task: the method beside plain, where it has at least two runs, in per cent of
    the size of plain's loss.
    """
    found: dict[str, dict[str, Against]] = {}
    for task, by_method in cells.items():
        scale = by_method["plain"].mean().abs() / 100
        relative = {method: values / scale for method, values in by_method.items()}
        for method in METHODS[1:]:
            if method in relative and len(relative[method]) > 1:
                found.setdefault(method, {})[task] = against(relative, method)
    return found
