"""The logistic experiments by name: what ``python -m imm_lib run logistic-…`` runs and shows."""

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


def _grid(config: dict, seed: int, *names: str) -> list[dict]:
    """Every combination of the named lists of the configuration, as units."""
    units = [{"seed": seed}]
    for name in names:
        units = [
            {**unit, name.removesuffix("s"): value} for unit in units for value in config[name]
        ]
    return [
        {"n" if name == "size" else name: value for name, value in unit.items()} for unit in units
    ]


def _check(config: dict) -> None:
    options.rows("normals", config["normals"], 3)
    for normal in config["normals"]:
        if not any(normal):
            raise ValueError(f"normals must not be 0, got {normal}")
    for name in ("sizes", "longer"):
        options.at_most(name, config.get(name), LARGEST)
    for name in ("shifts", "parts"):
        options.at_most(name, config.get(name), 1)
    for name in ("lrs", "rhos", "coins", "parts", "shifts", "periods", "momenta"):
        options.filled(name, config.get(name, [0]))
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
    for fit in paper.fits(result):
        cells = [f"{fit.chi2:.1f}", str(fit.near), f"{fit.rise:+.2f}"]
        rows.append([str(fit.normal), fit.labels, str(fit.steps), *cells])
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
_QUICK = {"runs": 20, "normals": [[1, 1, 1]], "steps": 200}


def _experiment(name: str, full: dict, quick: dict, axes: tuple, run, table=_TABLE) -> Experiment:
    full = {"runs": 300, "normals": PLANES, "steps": 10_000, **full}
    return Experiment(
        name=f"logistic-{name}",
        scales={"full": full, "ci": {**full, **_QUICK, **quick}},
        units=lambda config, seed: _grid(config, seed, *axes),
        run=run,
        table=table,
        check=_check,
    )


EXPERIMENTS = [
    _experiment(
        "sizes",
        {"sizes": SIZES},
        {"sizes": [2, 10]},
        ("normals", "sizes"),
        units.sizes,
    ),
    _experiment(
        "fixed",
        {"runs": 4 * paper.RUNS, "sizes": list(paper.TABLE_4), "lam": paper.LAM},
        {"sizes": [5, 20]},
        ("normals", "sizes"),
        units.fixed,
    ),
    _experiment(
        "search",
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
        units.search,
        _TABLE_SEARCH,
    ),
    _experiment(
        "plane",
        {
            "runs": 4 * paper.RUNS,
            "normals": [[1, 3, 3]],
            "sizes": list(paper.TABLE_4),
            "lam": paper.LAM,
            "steps": 6000,
        },
        {"normals": [[1, 3, 3]], "sizes": [5, 20]},
        ("normals", "sizes"),
        units.fixed,
    ),
    _experiment(
        "columns",
        {
            "runs": 60,
            "normals": paper.search_planes(),
            "sizes": [5, 10, 20, 30],  # a quarter of the work of all seven
            "lam": paper.LAM,
            "steps": [1000, 3000],
        },
        {"steps": [50, 100]},
        ("normals",),
        units.columns,
        _table_columns,
    ),
    _experiment(
        "confirmed",
        {
            "normals": [[1, 2, 3], [1, 3, 3]],
            "sizes": list(paper.TABLE_4),
            "lam": paper.LAM,
            "steps": [3000],
        },
        {"steps": [50], "sizes": [5, 20]},
        ("normals",),
        units.columns,
        _table_columns,
    ),
    _experiment(
        "lambda",
        {
            "normals": [[1, 1, 1]],
            "sizes": [2, 10, 20, 50],
            "lrs": [0.1, 1.0],
            "rhos": RHOS,
            "steps": 3000,
        },
        {"sizes": [10], "lrs": [1.0], "rhos": [0.0, 0.5, 0.9]},
        ("normals", "lrs", "sizes"),
        units.by_lambda,
        _TABLE_LAMBDA,
    ),
    _experiment(
        "quality",
        {
            "normals": [[1, 1, 1]],
            "sizes": SIZES,
            "coins": [0.0, 0.2, 0.5],
            "parts": [1.0, 0.6, 0.3],
            "steps": 3000,
        },
        {"sizes": [10], "coins": [0.0, 0.5], "parts": [1.0, 0.3]},
        ("normals", "sizes"),
        units.quality,
    ),
    _experiment(
        "variants",
        {"normals": [[1, 1, 1]], "sizes": SIZES, "steps": 3000},
        {"sizes": [5, 10]},
        ("normals", "sizes"),
        units.variants,
    ),
    _experiment(
        "stability",
        {
            "normals": [[1, 1, 1]],
            "sizes": [10, 20],
            "steps": 3000,
            "periods": PERIODS,
            "momenta": MOMENTA,
            "methods": [
                "baseline",
                "IMM exact",
                "IMM serialized",
                "IMM moving average",
                "stale table",
            ],
        },
        {"sizes": [10], "periods": [1, 50], "momenta": [1.0, 0.1]},
        ("normals", "sizes", "methods"),
        units.stability,
        _table_stability,
    ),
    _experiment(
        "extra-data",
        {"sizes": SIZES, "longer": [60, 70, 80], "bootstrap": 2000},
        {"sizes": [5, 10, 20], "longer": [30], "bootstrap": 50},
        ("normals",),
        units.extra,
        _TABLE_EXTRA,
    ),
]
