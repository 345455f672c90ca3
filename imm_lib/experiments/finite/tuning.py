"""λ without a search: the rules that choose it, on many data sets of a finite world."""

import math
from collections.abc import Callable
from functools import reduce
from typing import Any, Protocol

import torch
from torch import Tensor

from imm_lib.experiments import Experiment, paper
from imm_lib.experiments.finite.worlds import (
    INFINITE,
    LogitWorld,
    Restriction,
    by_view,
    closed_informations,
    derivatives,
    fit,
    hessian,
    share,
    value,
)
from imm_lib.experiments.spread import mean_error
from imm_lib.experiments.table import Table
from imm_lib.worth import Worth

FOLDS = 5
GRID = [0.0, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0]
"""Weights from which cross-validation and the oracle choose."""

LARGEST = 30.0
RIDGE = 1e-3
"""Pairs of both labels in every cell, as a share of the data: without it separable data have no
fit.
"""


class Fits(Protocol):
    """R data sets in folds, and the fits on them: all that a rule knows."""

    runs: int  # R
    n: int  # points of the full model
    m: float  # pairs of the restricted one

    def fit(self, lam: Tensor | float, left_out: int | None = None) -> Tensor:
        """Parameters at λ, (R,) or one for all, on every fold but one, or on all of them."""

    def held_out(self, theta: Tensor, fold: int) -> Tensor:
        """(R,) losses on a fold."""

    def slope(self, lam: Tensor) -> Tensor:
        """(R,) derivatives by log λ of the loss on the first fold, of the fit on the others."""

    def plug_in(self) -> Tensor:
        """(R,) the best λ of :mod:`imm_lib.worth`, measured at each fit with λ = 1."""


def schedule(n: int) -> float:
    """The paper's weight λ for n points."""
    rho = paper.schedule(n)
    return rho / (1 - rho)


def cross_validated(data: Fits) -> Tensor:
    """The weight of GRID with the least loss on held-out folds."""
    losses = [
        reduce(torch.add, [data.held_out(data.fit(lam, fold), fold) for fold in range(FOLDS)])
        for lam in GRID
    ]
    best = torch.stack(losses).argmin(0)
    return torch.tensor(GRID, dtype=torch.float64, device=best.device)[best]


def validation_gradient(data: Fits, steps: int = 30, rate: float = 0.3) -> Tensor:
    """log λ moved from 0 by Adam down the gradient of the loss on one held-out fold."""
    log_lam = torch.zeros(data.runs, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([log_lam], rate)
    for _ in range(steps):
        log_lam.grad = data.slope(log_lam.detach().exp()).to(log_lam.device)
        optimiser.step()
        log_lam.data.clamp_(max=math.log(LARGEST))
    return log_lam.detach().exp()


RULES: dict[str, Callable[[Any], Tensor | float]] = {
    "none": lambda data: 0.0,
    "λ = 1": lambda data: 1.0,
    "paper's schedule": lambda data: schedule(data.n),
    # of maximum likelihood where π is known
    "m / n": lambda data: min(data.m / data.n, LARGEST),
    "plug-in": lambda data: data.plug_in(),
    "cross-validation": cross_validated,
    "validation gradient": validation_gradient,
}


def chosen(data: Fits) -> dict[str, Tensor]:
    """(R,) weights by each of RULES."""
    weights = {
        name: torch.as_tensor(rule(data), dtype=torch.float64) for name, rule in RULES.items()
    }
    return {name: weight.expand(data.runs) for name, weight in weights.items()}


class Data:
    """R data sets of n points in folds, and of m pairs of the view "s": :class:`Fits`."""

    def __init__(
        self, world: LogitWorld, n: int, m: int | str, runs: int, generator: torch.Generator
    ):
        self.world, self.runs, self.n, self.m = world, runs, n, float(m)
        self.view, self.features = world.views["s"], world.features
        self.folds = [world.sample(n // FOLDS, runs, generator) for _ in range(FOLDS)]
        self.target = world.estimated(self.view, m, runs, generator)

    def counts(self, left_out: int | None = None) -> Tensor:
        """(R, Z, 2) shares of the points."""
        kept = [fold for i, fold in enumerate(self.folds) if i != left_out]
        return reduce(torch.add, kept) / len(kept)

    def term(self, counts: Tensor, lam: Tensor | float) -> Restriction:
        """The IMM term with π counted from the same points; (R,) weights are folded into the
        pairs.
        """
        cells = counts.sum(-1)
        short = by_view(cells, self.view)
        scale = torch.as_tensor(lam, dtype=torch.float64, device=counts.device).reshape(-1, 1, 1)
        return Restriction(
            self.view, scale * short.unsqueeze(-1) * self.target, share(cells, self.view), 1.0
        )

    def fit(self, lam: Tensor | float, left_out: int | None = None) -> Tensor:
        """As of :class:`Fits`, (R, d)."""
        counts = self.counts(left_out)
        smooth = counts + RIDGE / counts.shape[1]
        return fit(self.features, smooth, [self.term(counts, lam)], steps=60)[0]

    def held_out(self, theta: Tensor, fold: int) -> Tensor:
        """As of :class:`Fits`."""
        return value(self.features, self.folds[fold], (), theta)

    def slope(self, lam: Tensor) -> Tensor:
        """As of :class:`Fits`, by implicit differentiation."""
        counts, theta = self.counts(0), self.fit(lam, 0)
        term = self.term(counts, lam)
        curvature = hessian(self.features, counts + RIDGE / counts.shape[1], [term], theta)
        # times λ already
        by_term, _ = derivatives(self.features, torch.zeros_like(counts), [term], theta)
        held_out, _ = derivatives(self.features, self.folds[0], (), theta)
        return -(held_out * torch.linalg.solve(curvature, by_term)).sum(1)

    def plug_in(self) -> Tensor:
        """As of :class:`Fits`."""
        cells = self.counts().sum(-1)
        found = closed_informations(self.features, cells, self.view, self.fit(1.0))
        rows = zip(*found, strict=True)
        lams = [Worth.of(*row, damping=1e-3).optimal_lambda(self.n, self.m) for row in rows]
        return torch.tensor(lams, dtype=torch.float64).clamp(max=LARGEST)


def _run(unit: dict, config: dict, device: torch.device) -> dict:
    world, generator = LogitWorld.draw().to(device), torch.Generator().manual_seed(unit["seed"])
    data = Data(world, unit["n"], unit["m"], config["runs"], generator)
    by_lam = torch.stack([world.excess(data.fit(lam)) for lam in GRID])
    best = int(by_lam.mean(1).argmin())
    rules = {}
    for name, lam in chosen(data).items():
        excess = world.excess(data.fit(lam))
        regret = mean_error(excess - by_lam[best])
        rules[name] = {
            "excess": excess.mean().item(),
            "regret": regret["mean"],
            "se": regret["se"],
            "worst_tenth": torch.quantile(excess, 0.9).item(),
            "lam": torch.quantile(lam, lam.new_tensor([0.1, 0.5, 0.9])).tolist(),
        }
    return {"rules": rules, "oracle": {"lam": GRID[best], "excess": by_lam[best].mean().item()}}


def _check(config: dict) -> None:
    for name, least in (("n", FOLDS), ("m", 1)):
        for size in config[name]:
            if size != INFINITE and (not isinstance(size, int) or size < least):
                raise ValueError(f"{name} must be whole numbers of at least {least}, got {size!r}")


EXPERIMENTS = [
    Experiment(
        name="side-weights",
        scales={
            "full": {"runs": 200, "n": [25, 50, 100, 400], "m": [50, 500, INFINITE]},
            "ci": {"runs": 10, "n": [50], "m": [INFINITE]},
        },
        units=lambda config, seed: [
            {"seed": 100 * seed + i, "n": n, "m": m}
            for i, (n, m) in enumerate((n, m) for n in config["n"] for m in config["m"])
        ],
        run=_run,
        table=Table(
            "rules/{rule}",
            {
                "n": "{n}",
                "m": "{m}",
                "best fixed λ": "{oracle/lam:g}",
                "rule": "{rule}",
                "excess risk": "{excess:.5f}",
                "over the best fixed λ": "{regret:.5f} ± {se:.5f}",
                "λ: tenth, median, nine tenths": lambda row: ", ".join(
                    f"{lam:.2f}" for lam in row["lam"]
                ),
            },
        ),
        check=_check,
    )
]
