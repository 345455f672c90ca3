"""Logistic regressions on single splits of the tables, by exact IMM to convergence: the rules that
choose λ, and restricted models from another population.
"""

import copy
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from imm_lib.contexts import KernelContexts
from imm_lib.estimators import ExactIMM, Query
from imm_lib.experiments import Experiment, options, reading
from imm_lib.experiments.clinic.settings import SIDE
from imm_lib.experiments.clinic.sources import Part, draw
from imm_lib.experiments.finite.tuning import FOLDS, GRID, LARGEST, chosen
from imm_lib.experiments.training import minimise
from imm_lib.premise import lead, surprise
from imm_lib.worth import suggest_lambda

BANDWIDTH = 1.0
"""Of the kernel, in standard deviations per restricted feature."""

DECAY = 1.0
"""L2 penalty on the parameters, divided by the number of cases."""


class Split:
    """A logistic regression in float64 on the training cases of a split, which are in folds; the
    R = 1 data set of :class:`imm_lib.experiments.finite.tuning.Fits`.

    Arguments and errors are those of :func:`imm_lib.experiments.clinic.sources.draw`, and a
    ValueError for a table whose labels are no classes.
    """

    runs = 1

    def __init__(self, name: str, n: int, m: int, seed: int, shift: float = 0.0):
        self.train, self.test, self.labels, _, self.target = draw(name, n, m, seed, shift)
        if not self.labels:
            raise ValueError(f"name must be of a table of classes, got {name!r}")
        self.n, self.m = n, float(m)
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
        self.folds = [order[fold::FOLDS] for fold in range(FOLDS)]

    def to(self, device: torch.device) -> "Split":
        """The same split on another device."""
        moved = copy.copy(self)
        moved.train, moved.test = (
            Part(*(values.to(device) for values in part)) for part in (self.train, self.test)
        )
        moved.folds = [fold.to(device) for fold in self.folds]
        return moved

    def log_q(self, theta: Tensor, short: Tensor, rest: Tensor) -> Tensor:
        """(N, c), (N, f) -> (N, Y) log-probabilities."""
        inputs = torch.cat([short.new_ones(len(short), 1), short, rest], 1).double()
        return (inputs @ theta.view(-1, self.labels)).log_softmax(1)

    def part(self, *folds: int) -> Part:
        """The training cases of some folds."""
        index = torch.cat([self.folds[i] for i in folds])
        return Part(*(values[index] for values in self.train))

    def others(self, left_out: int | None = None) -> Part:
        """The training cases of all folds but one, or of all."""
        return self.part(*(i for i in range(FOLDS) if i != left_out))

    def query(self, theta: Tensor, part: Part) -> Query:
        """The model at a part's cases, as the estimators ask it: a neighbour is taken whole."""
        log_q = self.log_q(theta, part.short, part.rest)
        return lambda short, point: log_q[point]

    def contexts(self, part: Part) -> KernelContexts:
        """Of IMM on a part."""
        return KernelContexts(part.short, BANDWIDTH * part.short.shape[1])

    def risk(self, theta: Tensor, part: Part) -> Tensor:
        """The exact IMM risk on a part, in nats."""
        return ExactIMM(self.target, self.contexts(part))(self.query(theta, part), part.short)

    def cross_entropy(self, theta: Tensor, part: Part) -> Tensor:
        """Mean loss on a part, in nats."""
        return F.nll_loss(self.log_q(theta, part.short, part.rest), part.label)

    def objective(self, theta: Tensor, part: Part, lam: Tensor | float) -> Tensor:
        """Cross-entropy + λ · IMM + penalty, in nats; the extended contexts are the part's own."""
        penalty = DECAY / (2 * len(part.label)) * theta.square().sum()
        loss = self.cross_entropy(theta, part) + penalty
        return loss + lam * self.risk(theta, part) if lam > 0 else loss

    def fit(self, lam: Tensor | float, left_out: int | None = None) -> Tensor:
        """(d,) parameters at λ."""
        part, weight = self.others(left_out), float(lam)
        size = (1 + part.short.shape[1] + part.rest.shape[1]) * self.labels
        theta = torch.zeros(size, dtype=torch.float64, device=part.short.device)
        minimise(lambda: self.objective(theta, part, weight), [theta], 200, tolerance_change=1e-10)
        return theta.detach()

    def tested(self, lam: float) -> float:
        """The test loss of the fit at λ, in nats."""
        return self.cross_entropy(self.fit(lam), self.test).item()

    def held_out(self, theta: Tensor, fold: int) -> Tensor:
        """(1,) loss on a fold."""
        return self.cross_entropy(theta, self.part(fold)).view(1)

    def slope(self, lam: Tensor) -> Tensor:
        """(1,) as of Fits, by implicit differentiation."""
        part, theta, weight = self.others(0), self.fit(lam, 0), float(lam)
        objective = partial(self.objective, part=part, lam=weight)
        curvature = torch.autograd.functional.hessian(objective, theta)
        theta.requires_grad_()
        (by_term,) = torch.autograd.grad(weight * self.risk(theta, part), theta)
        (outer,) = torch.autograd.grad(self.cross_entropy(theta, self.part(0)), theta)
        return -(outer @ torch.linalg.solve(curvature, by_term)).view(1)

    def plug_in(self) -> Tensor:
        """(1,) :func:`imm_lib.worth.suggest_lambda` at the fit with λ = 1."""
        theta, part = self.fit(1.0).requires_grad_(), self.train
        points = torch.arange(self.n, device=part.short.device)
        sample = self.contexts(part), part.short, points
        lam = suggest_lambda(self.query(theta, part), [theta], *sample, self.m, largest=LARGEST)
        return torch.tensor([lam], dtype=torch.float64)

    def lead(self, plain: list[Tensor]) -> float:
        """How far the target is ahead of the induced model of plain trainings, in standard errors.

        Each of the ``plain`` fits has left out a fold, which lends its pairs to
        :func:`imm_lib.premise.lead`.
        """
        ahead = squares = 0.0
        for fold, theta in enumerate(plain):
            kept, pairs = self.others(fold), self.part(fold)
            query, contexts = self.query(theta, kept), self.contexts(kept)
            found = lead(query, contexts, self.target, pairs.short, pairs.label)
            share = len(pairs.label) / self.n
            ahead, squares = ahead + share * found.ahead, squares + (share * found.error) ** 2
        return ahead / squares**0.5


def _drawn(unit: dict, config: dict, device: torch.device, shift: float = 0.0) -> Split:
    side = config["m"][unit["data"]]
    return Split(unit["data"], unit["n"], side, unit["seed"], shift).to(device)


def _rules(unit: dict, config: dict, device: torch.device) -> dict:
    """The test loss at the weight of every rule, and at every weight of GRID."""
    split = _drawn(unit, config, device)
    weights = {name: lam.item() for name, lam in chosen(split).items()}
    return {
        "rules": {name: {"lam": lam, "loss": split.tested(lam)} for name, lam in weights.items()},
        "by_lam": {str(lam): split.tested(lam) for lam in GRID},
    }


def _shifted(unit: dict, config: dict, device: torch.device) -> dict:
    """By share of moved labels: how IMM at λ = 1 changes the test loss, and what could be known
    before: the target's surprise at the training labels and its lead, which are told in standard
    errors.
    """
    split = _drawn(unit, config, device)
    plain, folds = split.tested(0.0), [split.fit(0.0, fold) for fold in range(FOLDS)]
    found = {}
    for shift in config["shift"]:
        split = _drawn(unit, config, device, shift)  # of the same cases
        found[str(shift)] = {
            "change": split.tested(1.0) - plain,
            "surprise": surprise(split.target(split.train.short), split.train.label).z,
            "lead": split.lead(folds),
        }
    return {"plain": plain, "shifts": found}


def _units(config: dict, seed: int) -> list[dict]:
    return [
        {"data": data, "n": n, "seed": seed + split}
        for data, n in config["cases"]
        for split in range(config["splits"])
    ]


def _check(config: dict) -> None:
    options.rows("cases", config["cases"], 2)
    for data, n in config["cases"]:
        options.one_of("cases' table", data, config["m"])
        Split(data, n, config["m"][data], 0)
    options.at_most("shift", config.get("shift"), 1)


_SIDE = {name: SIDE[name] for name in ("breast cancer", "wine")}

EXPERIMENTS = [
    Experiment(
        name="side-tuning",
        scales={
            "full": {
                "m": _SIDE,
                "cases": [
                    ["breast cancer", 20],
                    ["breast cancer", 40],
                    ["breast cancer", 80],
                    ["wine", 20],
                    ["wine", 40],
                ],
                "splits": 20,
            },
            "ci": {"m": {"wine": 60}, "cases": [["wine", 20]], "splits": 1},
        },
        units=_units,
        run=_rules,
        table=partial(reading.listed, columns=["loss"], against="none", where="rules/{rule}"),
        check=_check,
    ),
    Experiment(
        name="side-shift",
        scales={
            "full": {
                "m": _SIDE,
                "cases": [["breast cancer", 40], ["wine", 40]],
                "shift": [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0],
                "splits": 20,
            },
            "ci": {"m": {"wine": 60}, "cases": [["wine", 20]], "shift": [0.0, 1.0], "splits": 2},
        },
        units=_units,
        run=_shifted,
        table=partial(
            reading.listed, columns=["change", "surprise", "lead"], where="shifts/{shift}"
        ),
        check=_check,
    ),
]
