"""The logistic experiments by name: what ``python -m imm_lib run logistic-…`` runs and shows."""

from collections.abc import Callable
from itertools import product

import torch

from imm_lib.experiments import Experiment, options, reading
from imm_lib.experiments.logistic import paper, units
from imm_lib.experiments.logistic.training import METHODS
from imm_lib.experiments.logistic.units import LARGEST, VARIANTS
from imm_lib.experiments.table import Table

__all__ = ["EXPERIMENTS", "LARGEST", "MOMENTA", "PERIODS", "RHOS", "SIZES", "VARIANTS"]

SIZES = [2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 40, 50]
RHOS = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
PERIODS = [1, 3, 10, 30, 100, 300, 1000]
MOMENTA = [1.0, 0.9, 0.3, 0.1, 0.03, 0.01, 0.003]


def _grid(config: dict, seed: int, axes: tuple[str, ...]) -> list[dict]:
    """Every combination of the named lists of the configuration, as units."""
    names = ["n" if axis == "sizes" else axis.removesuffix("s") for axis in axes]
    combinations = product(*(config[axis] for axis in axes))
    return [{"seed": seed, **dict(zip(names, values, strict=True))} for values in combinations]


def _check(config: dict) -> None:
    options.rows("normals", config["normals"], 3)
    for normal in config["normals"]:
        if not any(normal):
            raise ValueError(f"normals must not be 0, got {normal}")
    for name in ("sizes", "longer"):
        options.at_most(name, config.get(name), LARGEST)
    for name in ("shifts", "parts"):
        options.at_most(name, config.get(name), 1)
    options.each("methods", config.get("methods", METHODS), METHODS)


_TABLE = Table(
    "accuracy/{method}", {"unit": "{unit}"}, across=("{method}", "{mean:.2f} ± {se:.2f}")
)
_TABLE_SEARCH = Table(
    "accuracy/{noising}/{n=sizes}",
    {"plane": "{unit}", "noising": "{noising}"},
    across=("n = {n}", "{value:.2f}"),
)
_TABLE_LAMBDA = Table(
    "{method}/accuracy/{rho=rhos}",
    {"unit": "{unit}", "method": "{method}"},
    across=("ρ = {rho}", "{mean:.2f}"),
)
_TABLE_EXTRA = Table(
    "{size}",
    {
        "plane": "{normal}",
        "n": "{size}",
        "extra data, per cent": "{percent:.0f}",
        "95 % interval": "{interval[0]:.0f} to {interval[1]:.0f}",
    },
)


def _table_columns(result: dict) -> list[list[str]]:
    rows = [["plane", "labels", "steps", "chi2", "near", "rise of noising from 20"]]
    for normal, labels, steps, chi2, near, rise in paper.fits(result):
        rows.append([str(normal), labels, str(steps), f"{chi2:.1f}", str(near), f"{rise:+.2f}"])
    return rows


def _table_stability(result: dict) -> list[list[str]]:
    rows = [["unit", "settings", "accuracies"]]
    for row in reading.rows(result, "{settings}"):
        value = row.get("value", [row])
        lines = value if isinstance(value[0], list) else [value]
        unit = f"n {row['n']}, {row['method']}"
        rows += [
            [unit, row["settings"], " ".join(f"{x['mean']:.1f}" for x in line)] for line in lines
        ]
    return rows


PLANES = [[1, 1, 1], [1, 2, 1]]
_BASE = {"runs": 300, "normals": [[1, 1, 1]], "steps": 3000}
_QUICK = {"runs": 20, "normals": [[1, 1, 1]], "steps": 200}
_LONG = {"normals": PLANES, "steps": 10_000}
_TABLE_4 = {"sizes": list(paper.TABLE_4), "lam": paper.LAM}


def _experiment(
    name: str,
    run: Callable[[dict, dict, torch.device], dict],
    full: dict,
    quick: dict,
    axes: tuple[str, ...] = ("normals", "sizes"),
    table: Callable[[dict], list[list[str]]] = _TABLE,
) -> Experiment:
    full = {**_BASE, **full}
    return Experiment(
        name=f"logistic-{name}",
        scales={"full": full, "ci": {**full, **_QUICK, **quick}},
        units=lambda config, seed: _grid(config, seed, axes),
        run=run,
        table=table,
        check=_check,
    )


EXPERIMENTS = [
    _experiment("sizes", units.sizes, {**_LONG, "sizes": SIZES}, {"sizes": [2, 10]}),
    _experiment(
        "fixed", units.fixed, {**_LONG, **_TABLE_4, "runs": 4 * paper.RUNS}, {"sizes": [5, 20]}
    ),
    _experiment(
        "search",
        units.search,
        {
            "runs": 100,
            "normals": paper.search_planes(),
            # of the plane from the centre, as a share of g's range over the cube
            "shifts": [0.0, 0.15],
            "sizes": [5, 20, 30, 50],
            "lam": paper.LAM,
            "steps": [300, 1000, 3000],
        },
        {"sizes": [20, 50], "shifts": [0.0], "steps": [100]},
        ("normals", "shifts"),
        _TABLE_SEARCH,
    ),
    _experiment(
        "plane",
        units.fixed,
        {**_TABLE_4, "runs": 4 * paper.RUNS, "normals": [[1, 3, 3]], "steps": 6000},
        {"normals": [[1, 3, 3]], "sizes": [5, 20]},
    ),
    _experiment(
        "columns",
        units.columns,
        {
            "runs": 60,
            "normals": paper.search_planes(),
            "sizes": [5, 10, 20, 30],  # a quarter of the work of all seven
            "lam": paper.LAM,
            "steps": [1000, 3000],
        },
        {"steps": [50, 100]},
        ("normals",),
        _table_columns,
    ),
    _experiment(
        "confirmed",
        units.columns,
        {
            **_TABLE_4,
            "runs": 4 * paper.RUNS,
            "normals": [[1, 2, 3], [1, 3, 3]],
            "steps": [3000],
        },
        {"steps": [50], "sizes": [5, 20]},
        ("normals",),
        _table_columns,
    ),
    _experiment(
        "lambda",
        units.by_lambda,
        {"sizes": [2, 10, 20, 50], "lrs": [0.1, 1.0], "rhos": RHOS},
        {"sizes": [10], "lrs": [1.0], "rhos": [0.0, 0.5, 0.9]},
        ("normals", "lrs", "sizes"),
        _TABLE_LAMBDA,
    ),
    _experiment(
        "quality",
        units.quality,
        {"sizes": SIZES, "coins": [0.0, 0.2, 0.5], "parts": [1.0, 0.6, 0.3]},
        {"sizes": [10], "coins": [0.0, 0.5], "parts": [1.0, 0.3]},
    ),
    _experiment("variants", units.variants, {"sizes": SIZES}, {"sizes": [5, 10]}),
    _experiment(
        "stability",
        units.stability,
        {
            "sizes": [10, 20],
            "periods": PERIODS,
            "momenta": MOMENTA,
            "methods": ["baseline", *(m for m in VARIANTS if m not in ("IMM sampled", "noising"))],
        },
        {"sizes": [10], "periods": [1, 50], "momenta": [1.0, 0.1]},
        ("normals", "sizes", "methods"),
        _table_stability,
    ),
    _experiment(
        "extra-data",
        units.extra,
        {**_LONG, "sizes": SIZES, "longer": [60, 70, 80], "bootstrap": 2000},
        {"sizes": [5, 10, 20], "longer": [30], "bootstrap": 50},
        ("normals",),
        _TABLE_EXTRA,
    ),
]
