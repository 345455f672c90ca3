"""The choice of divergence: what it changes for a logistic regression on a finite world."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from imm_lib import divergences
from imm_lib.divergences import Divergence
from imm_lib.experiments import Experiment, options
from imm_lib.experiments.finite.descent import minimise
from imm_lib.experiments.finite.worlds import LogitWorld, by_view, share
from imm_lib.experiments.table import Table

BINS = 10
"""Of the calibration error."""


def objective(
    world: LogitWorld,
    counts: Tensor,
    view: Tensor,
    target: Tensor,
    divergence: Divergence,
    lam: float,
    matching: str = "induced",
    decay: float = 1e-3,
) -> Callable[[Tensor], Tensor]:
    """(R, d) parameters -> (R,) cross-entropy + λ · divergence + decay, with a known π.

    Args:
        world: a finite world.
        counts: (R, Z, 2) shares of the points.
        view: (Z,) what the target sees.
        target: (G, 2) or (R, G, 2) P̂.
        divergence: D(P̂ ‖ Q̂).
        lam: λ.
        matching: "induced" for D(P̂ ‖ Q̂), "full" for the mean of D(P̂ ‖ Q) over the points' cells.
        decay: L2 penalty on the parameters, which separable data need.

    Raises:
        ValueError: an unknown matching.
    """
    if matching not in ("induced", "full"):
        raise ValueError(f"matching must be induced or full, got {matching!r}")
    belief, weight = share(world.pi, view), by_view(world.pi, view)

    def loss(theta: Tensor) -> Tensor:
        logit = theta @ world.features.T
        log_q = torch.nn.functional.logsigmoid(torch.stack([-logit, logit], -1))  # (R, Z, 2)
        if matching == "induced":
            induced = by_view(belief * log_q.mT.exp(), view).mT.log()
            term = (weight * divergence(target, induced)).sum(1)
        else:
            term = (counts.sum(-1) * divergence(target[..., view, :], log_q)).sum(1)
        return -(counts * log_q).sum((1, 2)) + lam * term + decay * theta.square().sum(1)

    return loss


def fit(
    world: LogitWorld, counts: Tensor, *rest: Any, start: Tensor | None = None, **options: Any
) -> Tensor:
    """(R, d) parameters that minimise :func:`objective`, R fits at once, from ``start`` or zero."""
    begin = counts.new_zeros(len(counts), world.features.shape[1]) if start is None else start
    return minimise(objective(world, counts, *rest, **options), begin)


def rounded(epsilon: float) -> Divergence:
    """Total variation with its kinks rounded: |d| becomes √(d² + ε²) - ε, at most ε below it."""

    def total_variation(target: Tensor, log_q: Tensor) -> Tensor:
        return 0.5 * ((target - log_q.exp()).square().add(epsilon**2).sqrt() - epsilon).sum(-1)

    return total_variation


ROUNDINGS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
"""Of total variation, one after the other: at large λ its minimum lies in as many kinks as there
are short contexts, where every descent is slow.
"""


def calibration_error(world: LogitWorld, theta: Tensor) -> Tensor:
    """(R,) mean |P - Q| of label 1 over ten bins of equal width in Q, exactly."""
    q, p = world.probability(theta), world.probability(world.theta)
    bins = (q * BINS).long().clamp(max=BINS - 1)
    gaps = q.new_zeros(len(theta), BINS).scatter_add_(1, bins, world.pi * (p - q))
    return gaps.abs().sum(1)


def accuracy(world: LogitWorld, theta: Tensor) -> Tensor:
    """(R,) probability that the likelier label of Q is right, exactly."""
    one, p = world.probability(theta) > 0.5, world.probability(world.theta)
    return (world.pi * torch.where(one, p, 1 - p)).sum(1)


def _logistic(unit: dict, config: dict, device: torch.device) -> dict:
    """By λ: excess risk, accuracy and calibration error, of the runs that choose λ and of those
    that report.

    "runs" has the excess risks of those that report at the best λ, to be paired with another
    unit's.
    """
    world, half = LogitWorld.grid().to(device), config["runs"] // 2
    view, generator = world.views["x1"], torch.Generator().manual_seed(unit["seed"])
    counts = world.sample(config["n"], config["runs"], generator)
    target = world.estimated(view, unit["m"], config["runs"], generator)
    stages = [divergences.NAMED[unit["divergence"]]]
    if unit["divergence"] == "total variation":
        stages = [rounded(epsilon) for epsilon in ROUNDINGS]
    found, runs = {}, {}
    for lam in config["lam"]:
        theta = counts.new_zeros(config["runs"], world.features.shape[1])
        for divergence in stages:
            theta = fit(world, counts, view, target, divergence, lam, unit["matching"], start=theta)
        reads = {
            "excess": world.excess(theta),
            "accuracy": accuracy(world, theta),
            "calibration": calibration_error(world, theta),
        }
        runs[str(lam)] = reads["excess"][half:].tolist()
        found[str(lam)] = {
            "chooses": reads["excess"][:half].mean().item(),
            **{name: value[half:].mean().item() for name, value in reads.items()},
            **{
                f"{name}_se": (value[half:].std() / half**0.5).item()
                for name, value in reads.items()
            },
        }
    best = min(found, key=lambda lam: found[lam]["chooses"])
    return {"by_lam": found, "best": best, "runs": [round(value, 6) for value in runs[best]]}


def _units(config: dict, seed: int) -> list[dict]:
    return [
        {"seed": seed, "m": m, "divergence": name, "matching": matching}
        for m in config["m"]
        for matching in ("induced", "full")
        for name in config["divergences"]
    ]


def _check(config: dict) -> None:
    options.each("divergences", config["divergences"], divergences.NAMED)
    for m in config["m"]:
        if m != "inf" and (not isinstance(m, int) or m < 1):
            raise ValueError(f'm must be whole numbers of at least 1 or "inf", got {m!r}')
    if config["runs"] < 4:  # half of them choose, and either half needs a spread
        raise ValueError(f"runs must be at least 4, got {config['runs']}")


def best(result: dict) -> dict[tuple[str, str, str], dict]:
    """By m ("inf" or a number), matching and divergence: the reads at the best λ, with "lam",
    "runs" and "by_lam".
    """
    found = {}
    for entry in result["units"]:
        unit, numbers = entry["unit"], entry["numbers"]
        by_lam = {float(lam): read for lam, read in numbers["by_lam"].items()}
        lam = float(numbers["best"])
        rest = {"lam": lam, "runs": torch.tensor(numbers["runs"]), "by_lam": by_lam}
        found[str(unit["m"]), unit["matching"], unit["divergence"]] = by_lam[lam] | rest
    return found


COMPARED = (
    *("cross-entropy", "reverse KL", "Jensen-Shannon", "alpha 0.5", "total variation"),
    *("squared Hellinger", "Cauchy-Schwarz", "balanced", "Plackett-Luce"),
)
"""Without the forward divergence of Kullback and Leibler, whose gradient is the cross-entropy's."""

_COMMON = {"n": 100, "m": ["inf", 200], "divergences": list(COMPARED)}

EXPERIMENTS = [
    Experiment(
        name="side-divergences",
        scales={
            "full": {
                **{"runs": 200, **_COMMON},
                "lam": [0.0, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0],
            },
            "ci": {"runs": 20, **_COMMON, "lam": [0.0, 1.0]},
        },
        units=_units,
        run=_logistic,
        table=Table(
            "by_lam/{lam}",
            {
                "unit": "{unit}",
                "best λ": "{lam}",
                "excess risk": "{excess:.4f} ± {excess_se:.4f}",
                "accuracy": "{accuracy:.4f} ± {accuracy_se:.4f}",
                "calibration error": "{calibration:.4f} ± {calibration_se:.4f}",
            },
            only=lambda row: row["lam"] == row["best"],
        ),
        check=_check,
    ),
]
