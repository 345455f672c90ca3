"""Several restricted models at once, a coarser one beside a finer, and views that are no
feature.
"""

from functools import reduce

import torch

from imm_lib.experiments import Experiment
from imm_lib.experiments.finite import simulations
from imm_lib.experiments.finite.worlds import LogitWorld, Restriction, by_view, fit, share
from imm_lib.worth import Worth

SETS = {
    "none": [],
    "nothing": ["nothing"],
    "half of x1": ["half of x1"],
    "x1": ["x1"],
    "x1 and half of x1": ["x1", "half of x1"],
    "x1 and nothing": ["x1", "nothing"],
    "how many above": ["how many above"],
    "x1 and x2": ["x1", "x2"],
    "x1, x2, how many above": ["x1", "x2", "how many above"],
}
"""Which views' restricted models are given, by name."""


def perfect(world: LogitWorld, view: torch.Tensor, lam: float) -> Restriction:
    """The IMM term of a view whose restricted model and π are the true ones."""
    pairs = by_view(world.pi, view).unsqueeze(1) * world.target(view)
    return Restriction(view, pairs.unsqueeze(0), share(world.pi, view), lam)


def combined(world: LogitWorld, names: list[str]) -> Worth:
    """What the named views are worth together, with equal weights: their informations add up."""
    found = [world.informations(world.views[name]) for name in names]
    return Worth.of(found[0][0], reduce(torch.add, [induced for _, induced, _ in found]))


def _run(unit: dict, config: dict, device: torch.device) -> dict:
    world, cells, n = LogitWorld.grid().to(device), {}, unit["n"]
    counts = world.sample(n, config["runs"], torch.Generator().manual_seed(unit["seed"]))
    for name, names in SETS.items():
        terms = [perfect(world, world.views[v], config["lam"]) for v in names]
        theta, found = fit(world.features, counts, terms)
        theory = theta.shape[1] / (2 * n)
        if names:
            theory = combined(world, names).excess_risk(config["lam"], n, known=True)
        cells[name] = {"theory": theory, **simulations.summary(world.excess(theta), found)}
    return {"cells": cells}


EXPERIMENTS = [
    Experiment(
        name="side-several",
        scales={
            "full": {"runs": 1000, "n": [100, 400, 1600], "lam": 3.0},
            "ci": {"runs": 50, "n": [100], "lam": 3.0},
        },
        units=lambda config, seed: [
            {"seed": 100 * seed + i, "n": n} for i, n in enumerate(config["n"])
        ],
        run=_run,
        table=simulations.table({"n": "{n}", "restricted models": "{models}"}, "models"),
    )
]
