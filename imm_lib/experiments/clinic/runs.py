"""The benchmark by name: what ``python -m imm_lib run map-tables`` and its like compute and store.

Every unit holds its task, and every task's numbers are losses of all methods on cases that nobody
chose on, paired by repetition.
"""

import math

import torch

from imm_lib.experiments import Experiment
from imm_lib.experiments.clinic import methods, settings, sources, text, walks
from imm_lib.experiments.clinic.protocol import METHODS
from imm_lib.experiments.clinic.suggested import suggester
from imm_lib.experiments.clinic.training import Cases, Model
from imm_lib.experiments.logistic.problem import Plane, test_points

SPREAD = 12**-0.5
"""Standard deviation of a uniform feature: the cube's features are standardised."""


def stacked(parts: list[tuple]) -> Cases:
    """The cases of several splits, one after another."""
    return Cases(*(torch.stack(values) for values in zip(*parts, strict=True)))


def drawn(unit: dict, config: dict) -> tuple[str, list[sources.Problem], list[int]]:
    """The kind of model, the splits and their seeds of a unit of map-tables.

    Raises:
        ValueError: an unknown table.
    """
    name, kind, n = unit["task"].rsplit(", ", 2)
    if name not in config["m"]:
        raise ValueError(f"task must name a table, one of {', '.join(config['m'])}, got {name!r}")
    seeds = [unit["seed"] + i for i in range(config["block"])]
    size = int(n.removeprefix("n = "))
    return kind, [sources.draw(name, size, config["m"][name], seed) for seed in seeds], seeds


def table_problem(unit: dict, config: dict) -> tuple[Model, Cases, Cases, list[int]]:
    """The model, training and test cases and seeds of a unit of map-tables.

    Raises:
        ValueError: an unknown table or model.
    """
    kind, problems, seeds = drawn(unit, config)
    bandwidth = config["bandwidth"].get(unit["task"].split(",")[0], 1.0)
    model = Model.of(kind, problems[0].classes, bandwidth, config["steps"])
    train = stacked([problem.train for problem in problems])
    return model, train, stacked([problem.test for problem in problems]), seeds


def cube_problem(unit: dict, config: dict) -> tuple[Model, Cases, Cases, list[int]]:
    """The model, training and test cases and seeds of a unit of map-cube."""
    normal, n = unit["task"].removeprefix("cube ").rsplit(", n = ", 1)
    plane = Plane.through_centre(*(float(part) for part in normal.split()))
    seeds = [unit["seed"] + i for i in range(config["block"])]

    def cases(x: torch.Tensor) -> Cases:
        one = plane.restricted(x[..., 0])
        target = torch.stack([1 - one, one], -1).float()
        standard = ((x - 0.5) / SPREAD).float()
        return Cases(standard[..., :1], standard[..., 1:], plane.label(x).long(), target)

    drawn = [
        torch.rand(int(n), 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        for seed in seeds
    ]
    test = test_points(config["test"]).expand(len(seeds), -1, -1)
    model = Model.of("linear", 2, 1 / SPREAD, config["steps"], mixed=True)
    return model, cases(torch.stack(drawn)), cases(test), seeds


def problem(unit: dict, config: dict) -> tuple[Model, Cases, Cases, list[int]]:
    """The model, training and test cases and seeds of a unit of map-cube or map-tables."""
    return (cube_problem if unit["task"].startswith("cube ") else table_problem)(unit, config)


def _compare(unit: dict, config: dict, device: torch.device) -> dict:
    model, train, test, seeds = problem(unit, config)
    train, test = train.to(device), test.to(device)
    # of pairs of the restricted model; the cube's is the true one
    m = config.get("m", {}).get(unit["task"].rsplit(", ", 2)[0], math.inf)
    suggest = suggester(model, train, m) if model.outputs > 1 else None
    return {"methods": methods.compare(model, train, test, seeds, suggest)}


def _grid(unit: dict, config: dict, device: torch.device) -> dict:
    found = walks.compare(
        unit["task"].removeprefix("grid, ").removesuffix(" target"),
        config["budgets"],
        config["choosing"],
        config["reporting"],
        unit["seed"],
        device,
    )
    return {"budgets": {str(budget): by_method for budget, by_method in found.items()}}


def _blocks(tasks: list[str], config: dict, seed: int) -> list[dict]:
    """The blocks of all tasks' first repetitions come first, so that a part is a smaller whole."""
    return [
        {"task": task, "seed": seed + start}
        for start in range(0, config["repetitions"], config["block"])
        for task in tasks
    ]


def table_units(config: dict, seed: int) -> list[dict]:
    """Tables, models and sizes, by blocks of repetitions."""
    tasks = [f"{name}, {kind}, n = {n}" for name, kind, sizes in config["cases"] for n in sizes]
    return _blocks(tasks, config, seed)


def _cube_units(config: dict, seed: int) -> list[dict]:
    planes = [" ".join(str(a) for a in normal) for normal in config["normals"]]
    return _blocks([f"cube {p}, n = {n}" for p in planes for n in config["sizes"]], config, seed)


def _grid_units(config: dict, seed: int) -> list[dict]:
    return [{"task": f"grid, {name} target", "seed": seed} for name in config["targets"]]


def _table(result: dict) -> list[list[str]]:
    from imm_lib.experiments.clinic.reading import tasks

    rows = [["task", "runs", *METHODS, "target"]]
    for task, by_method in tasks(result).items():
        cells = [
            f"{by_method[name].mean():.4f}" if name in by_method else ""
            for name in (*METHODS, "target")
        ]
        rows.append([task, str(len(by_method["plain"])), *cells])
    return rows


QUICK = {
    "steps": 5,
    "repetitions": 2,
    "block": 2,
    "cases": [["wine", "linear", [20]], ["diabetes", "network", [20]]],
}
"""A quick look at tables."""

EXPERIMENTS = [
    Experiment(
        name="map-cube",
        scales={
            "full": {
                "normals": [[1, 1, 1], [1, 3, 3]],
                "sizes": [10, 20, 50],
                "steps": 200,
                "test": 2048,
                "repetitions": 60,
                "block": 20,
            },
            "ci": {
                "normals": [[1, 1, 1]],
                "sizes": [10],
                "steps": 10,
                "test": 256,
                "repetitions": 2,
                "block": 2,
            },
        },
        units=_cube_units,
        run=_compare,
        table=_table,
        check=settings.check_cube,
    ),
    Experiment(
        name="map-grid",
        scales={
            "full": {
                "targets": list(walks.TARGETS),
                "budgets": [50, 100, 200],
                "choosing": 20,
                "reporting": 30,
            },
            "ci": {"targets": ["split"], "budgets": [2, 3], "choosing": 2, "reporting": 2},
        },
        units=_grid_units,
        run=_grid,
        table=_table,
        check=settings.check_grid,
    ),
    Experiment(
        name="map-tables",
        scales={
            "full": settings.TABLES,
            "ci": {**settings.TABLES, **QUICK},
        },
        units=table_units,
        run=_compare,
        table=_table,
        check=settings.check_tables,
    ),
    Experiment(
        name="map-large",
        scales={"full": settings.LARGE, "ci": {**settings.LARGE, **QUICK}},
        units=table_units,
        run=_compare,
        table=_table,
        check=settings.check_tables,
    ),
    Experiment(
        name="map-text",
        scales={
            "full": settings.TEXT,
            "large": {
                **settings.TEXT,
                "tasks": [
                    ["LSTM, 1 % of PTB", 421, 5],
                    ["LSTM, 3 % of PTB", 1262, 5],
                    ["LSTM, 10 % of PTB", 4207, 5],
                    ["LSTM, 30 % of PTB", 12_620, 5],
                    ["LSTM, 100 % of PTB", 42_068, 2],
                    [settings.TRANSFORMER, 1262, 5],
                ],
                "by_task": {
                    **{f"LSTM, {share} % of PTB": settings.TUNED for share in (1, 3, 10, 30, 100)},
                    settings.TRANSFORMER: settings.ONE,
                },
            },
            "ci": {
                **settings.TEXT,
                "held_out": 100,
                "settings": {"width": 16, "dropout": 0.2, "epochs": 2},
                "tasks": [["LSTM, 100 lines", 100, 1]],
                "by_task": {"LSTM, 100 lines": settings.ONE},
                "reuse": False,
            },
        },
        units=text.units,
        run=text.run,
        table=_table,
        check=settings.check_text,
    ),
]
