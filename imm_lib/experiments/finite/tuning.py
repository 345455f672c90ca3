"""λ without a search: the rules that choose it, on many data sets of a finite world."""

from functools import reduce

import torch
from torch import Tensor

from imm_lib.experiments import Experiment, options, paper
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


class Data:
    """R data sets of n points in folds, and of m pairs of the view "s"."""

    def __init__(
        self, world: LogitWorld, n: int, m: int | str, runs: int, generator: torch.Generator
    ):
        self.world, self.n, self.view = world, n, world.views["s"]
        self.folds = [world.sample(n // FOLDS, runs, generator) for _ in range(FOLDS)]
        self.target, self.m = world.estimated(self.view, m, runs, generator), float(m)

    def counts(self, folds: list[int]) -> Tensor:
        """(R, Z, 2) shares of the points of some folds."""
        return reduce(torch.add, [self.folds[i] for i in folds]) / len(folds)

    def term(self, counts: Tensor, lam: float | Tensor) -> Restriction:
        """The IMM term with π counted from the same points; (R,) weights are folded into the
        pairs.
        """
        cells = counts.sum(-1)
        short = by_view(cells, self.view)
        scale = torch.as_tensor(lam, dtype=torch.float64, device=counts.device).reshape(-1, 1, 1)
        return Restriction(
            self.view, scale * short.unsqueeze(-1) * self.target, share(cells, self.view), 1.0
        )

    def fit(self, counts: Tensor, lam: float | Tensor) -> Tensor:
        """(R, d) parameters at weight λ, a number or (R,)."""
        smooth = counts + RIDGE / counts.shape[1]
        return fit(self.world.features, smooth, [self.term(counts, lam)], steps=60)[0]


def schedule(n: int) -> float:
    """The paper's weight λ for n points."""
    rho = paper.schedule(n)
    return rho / (1 - rho)


def plug_in(data: Data) -> Tensor:
    """The best λ of :mod:`imm_lib.worth`, with informations measured at each data set's own fit
    with λ = 1.
    """
    counts = data.counts(list(range(FOLDS)))
    found = closed_informations(
        data.world.features, counts.sum(-1), data.view, data.fit(counts, 1.0)
    )
    rows = zip(*found, strict=True)
    lams = [Worth.of(*row, damping=1e-3).optimal_lambda(data.n, data.m) for row in rows]
    return torch.tensor(lams).clamp(max=LARGEST)


def cross_validated(data: Data) -> Tensor:
    """The weight of GRID with the least loss on held-out folds."""
    losses = []
    for lam in GRID:
        held_out = []
        for fold in range(FOLDS):
            theta = data.fit(data.counts([i for i in range(FOLDS) if i != fold]), lam)
            held_out.append(value(data.world.features, data.folds[fold], (), theta))
        losses.append(reduce(torch.add, held_out))
    best = torch.stack(losses).argmin(0)
    return torch.tensor(GRID, device=best.device)[best]


def validation_gradient(data: Data, steps: int = 30, rate: float = 0.3) -> Tensor:
    """log λ moved down the gradient of the loss on one held-out fold, by implicit differentiation
    of the fit.
    """
    counts, features = data.counts(list(range(1, FOLDS))), data.world.features
    log_lam = counts.new_zeros(len(counts)).requires_grad_()
    optimiser = torch.optim.Adam([log_lam], rate)
    for _ in range(steps):
        lam = log_lam.detach().exp()
        theta, term = data.fit(counts, lam), data.term(counts, lam)
        curvature = hessian(features, counts + RIDGE / counts.shape[1], [term], theta)
        # times λ already
        by_term, _ = derivatives(features, torch.zeros_like(counts), [term], theta)
        held_out, _ = derivatives(features, data.folds[0], (), theta)
        log_lam.grad = -(held_out * torch.linalg.solve(curvature, by_term)).sum(1)
        optimiser.step()
        log_lam.data.clamp_(max=torch.tensor(LARGEST).log().item())
    return log_lam.detach().exp()


def pairs_over_points(data: Data) -> Tensor:
    """m / n, the weight of maximum likelihood where π is known."""
    return torch.full((len(data.target),), min(data.m / data.n, LARGEST))


RULES = {
    "none": lambda data: torch.zeros(len(data.target)),
    "λ = 1": lambda data: torch.ones(len(data.target)),
    "paper's schedule": lambda data: torch.full((len(data.target),), schedule(data.n)),
    "m / n": pairs_over_points,
    "plug-in": plug_in,
    "cross-validation": cross_validated,
    "validation gradient": validation_gradient,
}


def _run(unit: dict, config: dict, device: torch.device) -> dict:
    world, generator = LogitWorld.draw().to(device), torch.Generator().manual_seed(unit["seed"])
    data = Data(world, unit["n"], unit["m"], config["runs"], generator)
    counts, rules = data.counts(list(range(FOLDS))), {}
    by_lam = torch.stack([world.excess(data.fit(counts, lam)) for lam in GRID])
    oracle = by_lam[by_lam.mean(1).argmin()]
    for name, rule in RULES.items():
        lam = rule(data).to(counts)
        excess = world.excess(data.fit(counts, lam))
        quantiles = torch.quantile(lam, lam.new_tensor([0.1, 0.5, 0.9])).tolist()
        loss = (excess - oracle).double()
        rules[name] = {
            "excess": excess.mean().item(),
            "regret": loss.mean().item(),
            "se": (loss.std() / len(loss) ** 0.5).item(),
            "worst_tenth": torch.quantile(excess, 0.9).item(),
            "lam": quantiles,
        }
    return {
        "rules": rules,
        "oracle": {"lam": GRID[int(by_lam.mean(1).argmin())], "excess": oracle.mean().item()},
    }


def _check(config: dict) -> None:
    for name, least in (("n", FOLDS), ("m", 1)):
        options.filled(name, config[name])
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
