"""The excess risk of IMM and of noising, simulated, beside what the asymptotics of
``imm_lib.worth`` say.
"""

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from imm_lib.experiments import Experiment
from imm_lib.experiments.finite.worlds import (
    INFINITE,
    LogitWorld,
    Restriction,
    by_view,
    fit,
    share,
)
from imm_lib.experiments.spread import mean_error
from imm_lib.experiments.table import Row, Table
from imm_lib.worth import Worth


def data(
    world: LogitWorld,
    n: int,
    ratio: float,
    known: bool,
    runs: int,
    lam: float,
    generator: torch.Generator,
) -> tuple[Tensor, Restriction]:
    """(R, Z, 2) counts, and the IMM term of the view "s", of R data sets with m = ratio · n
    restricted samples.

    A perfect target, ratio infinite, weighs the short contexts as the n points do, or as π does
    where it is known.
    """
    counts, view = world.sample(n, runs, generator), world.views["s"]
    cells = counts.sum(-1)
    short = by_view(cells, view)
    belief = share(world.pi if known else cells, view)
    if math.isinf(ratio):
        weight = by_view(world.pi, view).expand(runs, -1) if known else short
        pairs = weight.unsqueeze(2) * world.target(view)
    else:
        pairs = by_view(world.sample(round(ratio * n), runs, generator).mT, view).mT
    # a short context without data of its own has no induced model
    seen = by_view(belief, view) > 0
    return counts, Restriction(view, pairs * seen.unsqueeze(-1), belief, lam)


def summary(excess: Tensor, found: Tensor) -> dict[str, float]:
    """Mean and standard error of the (R,) excess risks whose minimum was found, and how many were
    not.
    """
    return {**mean_error(excess[found]), "without_minimum": int((~found).sum())}


def _run(unit: dict, config: dict, device: torch.device) -> dict:
    world, generator = LogitWorld.draw().to(device), torch.Generator().manual_seed(unit["seed"])
    n, runs, ratio = unit["n"], config["runs"], float(unit["ratio"])
    worth, cells = Worth.of(*world.informations(world.views["s"])), {}
    counts, term = data(world, n, ratio, unit["known"], runs, 0.0, generator)
    for lam in config["lam"]:
        theta, found = fit(world.features, counts, [term._replace(lam=lam)])
        theory = worth.excess_risk(lam, n, ratio * n, unit["known"])
        cells[str(lam)] = {"theory": theory, **summary(world.excess(theta), found)}
    best = worth.optimal_lambda(n, ratio * n, unit["known"])
    return {"cells": cells, "best": best if math.isfinite(best) else INFINITE}


def noised(world: LogitWorld, counts: Tensor, lam: float) -> Tensor:
    """Counts whose cross-entropy is that of the data plus λ times the noising risk."""
    view = world.views["s"]
    return counts + lam * counts.sum(-1, keepdim=True) * world.target(view)[view]


def noising_floor(world: LogitWorld, lam: float) -> tuple[float, float]:
    """Excess risk of noising with infinite data: exactly, and by the bias λ (I + λK)⁻¹ b to first
    order.
    """
    theta, _ = fit(world.features, noised(world, world.joint().unsqueeze(0), lam))
    p, x, view = world.probability(world.theta), world.features, world.views["s"]
    # of both terms: I = K for a logit
    information = torch.einsum("z,zd,zf->df", world.pi * p * (1 - p), x, x)
    b = (world.pi * (p - world.target(view)[view, 1])) @ x
    bias = lam * torch.linalg.solve((1 + lam) * information, b)
    return max(0.0, world.excess(theta).item()), 0.5 * (bias @ information @ bias).item()


def _noising(unit: dict, config: dict, device: torch.device) -> dict:
    world, generator = LogitWorld.draw().to(device), torch.Generator().manual_seed(unit["seed"])
    counts, cells = world.sample(unit["n"], config["runs"], generator), {}
    for lam in config["lam"]:
        exact, linear = noising_floor(world, lam)
        theta, found = fit(world.features, noised(world, counts, lam))
        cells[str(lam)] = {
            "floor": exact,
            "linear_floor": linear,
            **summary(world.excess(theta), found),
        }
    return {"cells": cells}


def _units(config: dict, seed: int) -> list[dict]:
    cells = itertools.product(config["n"], config["ratio"], (True, False))
    # seeds of their own, so that the cells' errors are independent; those of one unit's λ are not
    return [
        {"seed": 1000 * seed + i, "n": n, "ratio": ratio, "known": known}
        for i, (n, ratio, known) in enumerate(cells)
    ]


def _check(config: dict) -> None:
    for ratio in config.get("ratio", ()):
        if (not isinstance(ratio, int | float) and ratio != INFINITE) or ratio == 0:
            raise ValueError(f"ratio must be numbers above 0 or {INFINITE!r}, got {ratio!r}")


def table(cell: dict[str, str | Callable[[Row], str]], name: str) -> Table:
    """Of risks by theory and simulated: ``cell`` says which, and has a field ``name`` for the key
    of "cells".
    """
    return Table(
        f"cells/{{{name}}}",
        {
            **cell,
            "theory": "{theory:.5f}",
            "simulated": "{mean:.5f} ± {se:.5f}",
            "s.e. apart": lambda row: f"{(row['mean'] - row['theory']) / row['se']:+.1f}",
            "no minimum": "{without_minimum}",
        },
    )


_GRID = {"runs": 2000, "n": [25, 50, 100, 200, 800, 3200], "lam": [0.0, 0.3, 1.0, 3.0]}

EXPERIMENTS = [
    Experiment(
        name="worth-asymptotics",
        scales={
            "full": {**_GRID, "ratio": [0.5, 2.0, INFINITE]},
            "ci": {**_GRID, "runs": 100, "n": [100], "ratio": [2.0, INFINITE]},
        },
        units=_units,
        run=_run,
        table=table(
            {
                "n": "{n}",
                "m / n": "{ratio}",
                "π": lambda row: "known" if row["known"] else "counted",
                "λ": "{lam}",
            },
            "lam",
        ),
        check=_check,
    ),
    Experiment(
        name="worth-noising",
        scales={"full": _GRID, "ci": {**_GRID, "runs": 100, "n": [100]}},
        units=lambda config, seed: [{"seed": seed, "n": n} for n in config["n"]],
        run=_noising,
        table=Table(
            "cells/{lam}",
            {
                "n": "{n}",
                "λ": "{lam}",
                "floor": "{floor:.5f}",
                "floor to first order": "{linear_floor:.5f}",
                "simulated": "{mean:.5f} ± {se:.5f}",
            },
        ),
        check=_check,
    ),
]
