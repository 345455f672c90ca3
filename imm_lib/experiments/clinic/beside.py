"""Where the gain comes from: IMM beside weight decay, and how many contexts how often."""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from imm_lib.experiments import Experiment
from imm_lib.experiments.clinic import runs, settings, training
from imm_lib.experiments.clinic.protocol import DECAYS, WEIGHTS
from imm_lib.experiments.clinic.training import Cases, Model, Settings
from imm_lib.experiments.logistic import terms
from imm_lib.experiments.logistic.problem import Data, Plane
from imm_lib.experiments.logistic.training import gradient, ratio
from imm_lib.experiments.spread import spread


def tested(
    model: Model, train: Cases, test: Cases, seeds: list[int], asked: Settings, term: str
) -> Tensor:
    """(R, S) test losses of trainings on all training cases, at each of the settings."""
    keep = torch.ones_like(train.label, dtype=torch.bool).unsqueeze(1)
    weights = training.train(model, train, keep, asked, term, seeds)
    raw = training.outputs([w[:, :, 0] for w in weights], test.inputs())
    return model.kind.loss(model.kind.answer(raw), test.label.unsqueeze(1)).double().mean(-1)


def _decay(unit: dict, config: dict, device: torch.device) -> dict:
    model, train, test, seeds = runs.problem(unit, config)
    pairs = torch.tensor(list(itertools.product(DECAYS, WEIGHTS)), device=device)
    decay, lam = (column.expand(len(seeds), -1) for column in pairs.T)
    asked = Settings(decay, lam, torch.zeros_like(lam))
    loss = tested(model, train.to(device), test.to(device), seeds, asked, "IMM")
    loss = loss.view(-1, len(DECAYS), len(WEIGHTS)).mul(1e5).round().div(1e5)
    return {"decay": list(DECAYS), "lam": list(WEIGHTS), "loss": loss.tolist()}


def _every(term: terms.Term, every: int) -> terms.Term:
    """A term that acts on every so many steps, as many times as strong."""

    def acting(short: Tensor, extended: Tensor, step: int) -> tuple[Tensor, Tensor]:
        if step % every:
            return torch.zeros_like(short), torch.zeros_like(extended)
        by_short, by_extended = term(short, extended, step)
        return every * by_short, every * by_extended

    return acting


def descend(data: Data, term: terms.Term, rho: float, steps: int) -> Tensor:
    """(4, R) weights by full-batch gradient descent of (1 - ρ) · cross-entropy + ρ · term, from
    0.
    """
    weights = data.short.new_zeros(4, data.short.shape[1])

    def own(short: Tensor, extended: Tensor, step: int) -> tuple[Tensor, Tensor]:
        slope = (torch.sigmoid(short + extended) - data.label) / len(short)
        return slope, slope

    for step in range(steps):
        pulled = gradient(data, weights, term, step)
        weights = weights - (1 - rho) * gradient(data, weights, own) - rho * pulled
    return weights


def _frontier(unit: dict, config: dict, device: torch.device) -> dict:
    plane = Plane.through_centre(*config["normal"])
    drawn = plane.draw(config["runs"], unit["n"], torch.Generator().manual_seed(unit["seed"]))
    data = Data(*(value.to(device) for value in drawn))
    rho, steps = ratio(config["lam"]), config["steps"]

    def accuracy(term: terms.Term, share: float = rho) -> Tensor:
        return plane.accuracy(descend(data, term, share, steps))

    plain, exact = accuracy(terms.exact(data), 0.0), accuracy(terms.exact(data))
    found = {}
    for k, every in itertools.product(config["k"], config["every"]):
        generator = torch.Generator().manual_seed(unit["seed"])
        reached = accuracy(_every(terms.sampled(data, k=k, generator=generator), every))
        found[f"k = {k}, every {every}"] = {
            "k": k,
            "every": every,
            "contexts": k / every,  # runs of the model a step and point, beside the labelled one
            **spread(reached),
            "above_plain": spread(reached - plain),
        }
    return {"plain": spread(plain), "exact": spread(exact), "settings": found}


def _check_decay(config: dict) -> None:
    settings.whole(config, "block", least=2)


def _check_frontier(config: dict) -> None:
    Plane.through_centre(*config["normal"])
    settings.whole(config, "k", "every")
    settings.whole(config, "sizes", least=2)


def _table_decay(result: dict) -> list[list[str]]:
    rows = [["task", "decay", *(f"λ = {lam:g}" for lam in WEIGHTS)]]
    for entry in result["units"]:
        loss = torch.tensor(entry["numbers"]["loss"]).mean(0)
        for decay, row in zip(DECAYS, loss.tolist(), strict=True):
            rows.append([entry["unit"]["task"], f"{decay:g}", *(f"{x:.4f}" for x in row)])
    return rows


def _table_frontier(result: dict) -> list[list[str]]:
    rows = [["n", "setting", "contexts a step", "accuracy", "above plain"]]
    for entry in result["units"]:
        n, numbers = str(entry["unit"]["n"]), entry["numbers"]
        for name in ("plain", "exact"):
            cell = numbers[name]
            rows.append([n, name, "", f"{cell['mean']:.2f} ± {cell['se']:.2f}", ""])
        for name, cell in numbers["settings"].items():
            above = cell["above_plain"]
            shown = [f"{c['mean']:.2f} ± {c['se']:.2f}" for c in (cell, above)]
            rows.append([n, name, f"{cell['contexts']:g}", *shown])
    return rows


def _units(*tasks: str) -> Callable[[dict, int], list[dict]]:
    return lambda config, seed: [{"task": task, "seed": seed} for task in tasks]


_SIDE = {"m": settings.SIDE, "bandwidth": {}, "steps": 200, "test": 2048, "block": 20}

EXPERIMENTS = [
    Experiment(
        name="map-decay",
        scales={"full": _SIDE, "ci": {**_SIDE, "steps": 3, "test": 64, "block": 2}},
        units=_units(
            "cube 1 1 1, n = 20",
            "breast cancer, linear, n = 20",
            "wine, network, n = 20",
            "anes96, linear, n = 20",
            "fair, linear, n = 100",
            "diabetes, linear, n = 20",
        ),
        run=_decay,
        table=_table_decay,
        check=_check_decay,
    ),
    Experiment(
        name="map-frontier",
        scales={
            "full": {
                "normal": [1, 1, 1],
                "sizes": [10, 20],
                "runs": 200,
                "steps": 1000,
                "lam": 1.5,
                "k": [1, 2, 5, 10, 20],
                "every": [1, 2, 5, 10],
            },
            "ci": {
                "normal": [1, 1, 1],
                "sizes": [10],
                "runs": 3,
                "steps": 20,
                "lam": 1.5,
                "k": [1, 2],
                "every": [1, 5],
            },
        },
        units=lambda config, seed: [{"seed": seed, "n": n} for n in config["sizes"]],
        run=_frontier,
        table=_table_frontier,
        check=_check_frontier,
    ),
]
