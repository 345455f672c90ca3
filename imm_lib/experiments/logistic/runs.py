"""The logistic experiments by name: what ``python -m imm_lib run logistic-…`` computes and stores."""

import time
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from imm_lib.experiments import Experiment, options, reading
from imm_lib.experiments.logistic import paper
from imm_lib.experiments.logistic.problem import Data, Plane
from imm_lib.experiments.logistic.readings import extra_data, spread
from imm_lib.experiments.logistic.training import METHODS, descend, ratio, schedule, train
from imm_lib.experiments.table import Table

LARGEST = 80
"""Points drawn for every run; smaller data sets are their beginnings, so that sizes are nested."""

SIZES = [2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 40, 50]
RHOS = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
PERIODS = [1, 3, 10, 30, 100, 300, 1000]
MOMENTA = [1.0, 0.9, 0.3, 0.1, 0.03, 0.01, 0.003]
VARIANTS: dict[str, dict[str, Any]] = {
    "IMM exact": {},
    "IMM sampled": {"k": 10},
    "IMM serialized": {"period": 50},
    "IMM moving average": {"momentum": 0.1},
    "stale table": {"period": 50},
    "noising": {},
}


def _drawn(unit: dict, config: dict, device: torch.device) -> tuple[Plane, Data]:
    """The plane of a unit and its data: the same on every device, and the same points at every
    size.
    """
    centred = Plane.through_centre(*unit["normal"])
    moved = unit.get("shift", 0.0) * sum(abs(a) for a in centred.normal)
    plane = Plane(centred.normal, centred.offset - moved)
    data = plane.draw(config["runs"], LARGEST, torch.Generator().manual_seed(unit["seed"]))
    return plane, data.to(device).first(unit["n"])


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


def _paired(accuracy: dict[str, Tensor]) -> dict:
    """Each method's spread over runs, and its difference from the baseline's run by run, in points."""
    base = accuracy["baseline"]
    return {
        name: {
            **spread(value),
            **({} if name == "baseline" else {"above_baseline": spread(value - base)}),
        }
        for name, value in accuracy.items()
    }


def _sizes(unit: dict, config: dict, device: torch.device) -> dict:
    plane, data = _drawn(unit, config, device)
    rho, seconds = schedule(unit["n"]), time.process_time()
    weights = {
        name: train(data, name, rho, steps=config["steps"])
        for name in ("baseline", "noising", "IMM exact")
    }
    seconds = time.process_time() - seconds
    accuracy = {name: plane.accuracy(w) for name, w in weights.items()}
    accuracy["interpolation"] = plane.accuracy(weights["baseline"], share=rho)
    above = spread(accuracy["IMM exact"] - accuracy["noising"])
    return {
        "rho": rho,
        "accuracy": _paired(accuracy),
        "imm_above_noising": above,
        "cpu_s": round(seconds, 3),
    }


def _fixed(unit: dict, config: dict, device: torch.device) -> dict:
    plane, data = _drawn(unit, config, device)
    rho = ratio(config["lam"])
    weights = {
        name: train(data, name, rho, steps=config["steps"])
        for name in ("baseline", "noising", "IMM exact")
    }
    accuracy = {name: plane.accuracy(w) for name, w in weights.items()}
    accuracy["IMM exact, scheduled"] = plane.accuracy(
        train(data, "IMM exact", schedule(unit["n"]), steps=config["steps"])
    )
    return {"accuracy": _paired(accuracy)}


COLUMNS = {
    "baseline": "baseline",
    "noising, soft labels": "noising",
    "noising, hard labels": "noising, hard labels",
    "IMM exact": "IMM exact",
}
"""What the search for Table 4 trains: its three columns, the second in two ways."""


def _search(unit: dict, config: dict, device: torch.device) -> dict:
    plane, data = _drawn({**unit, "n": max(config["sizes"])}, config, device)
    rho = ratio(config["lam"])
    table: dict[str, list[float]] = {}
    for method in ("noising", "reverse-KD"):
        for steps in config["steps"]:
            means = [
                plane.accuracy(train(data.first(n), method, rho, steps=steps)).mean().item()
                for n in config["sizes"]
            ]
            table[f"{method}, {steps} steps"] = [round(mean, 2) for mean in means]
    return {"accuracy": table}


def _columns(unit: dict, config: dict, device: torch.device) -> dict:
    plane, data = _drawn({**unit, "n": max(config["sizes"])}, config, device)
    rho = ratio(config["lam"])
    table: dict[str, list[dict[str, float]]] = {}
    for column, method in COLUMNS.items():
        hard = method == "noising, hard labels"
        options: dict[str, Any] = {}
        if hard:
            options["generator"] = torch.Generator().manual_seed(unit["seed"])
        for n in config["sizes"]:
            path, done = descend(data.first(n), method, rho, **options), 0
            for steps in config["steps"]:
                weights = next(islice(path, steps - done - 1, None))
                done = steps
                found = spread(plane.accuracy(weights))
                table.setdefault(f"{column}, {steps} steps", []).append(
                    {"mean": found["mean"], "se": found["se"]}
                )
    return {"columns": table}


def _lambda(unit: dict, config: dict, device: torch.device) -> dict:
    plane, data = _drawn(unit, config, device)
    rhos = torch.tensor(config["rhos"]).to(data.short).repeat_interleave(config["runs"])
    answer = {}
    for method in ("IMM exact", "noising"):
        weights = train(
            data.repeat(len(config["rhos"])), method, rhos, steps=config["steps"], lr=unit["lr"]
        )
        accuracy, risk = plane.accuracy(weights), plane.restricted_risk(weights)
        answer[method] = {
            "accuracy": [spread(x) for x in accuracy.view(-1, config["runs"])],
            "restricted_risk": [spread(x) for x in risk.view(-1, config["runs"])],
        }
    return answer


def _quality(unit: dict, config: dict, device: torch.device) -> dict:
    plane, data = _drawn(unit, config, device)
    base = plane.accuracy(train(data, "baseline", steps=config["steps"]))
    answer: dict[str, dict[str, Any]] = {"baseline": spread(base)}
    for coin in config["coins"]:
        weak = data.weaken(coin)
        for part in config["parts"]:
            accuracy = plane.accuracy(
                train(weak, "IMM exact", part * schedule(unit["n"]), steps=config["steps"])
            )
            above = {"above_baseline": spread(accuracy - base)}
            answer[f"coin {coin:g}, part {part:g}"] = spread(accuracy) | above
    return {"accuracy": answer}


def _variants(unit: dict, config: dict, device: torch.device) -> dict:
    plane, data = _drawn(unit, config, device)
    accuracy = {"baseline": plane.accuracy(train(data, "baseline", steps=config["steps"]))}
    for method, settings in VARIANTS.items():
        if method in ("IMM sampled", "IMM moving average"):
            settings = {**settings, "generator": torch.Generator().manual_seed(unit["seed"])}
        accuracy[method] = plane.accuracy(
            train(data, method, schedule(unit["n"]), steps=config["steps"], **settings)
        )
    return {"accuracy": _paired(accuracy)}


def _stability(unit: dict, config: dict, device: torch.device) -> dict:
    plane, data = _drawn(unit, config, device)
    rho, steps, method = schedule(unit["n"]), config["steps"], unit["method"]

    def of(method: str, **options: object) -> dict:
        return spread(plane.accuracy(train(data, method, rho, steps=steps, **options)))

    if method == "IMM serialized":
        return {"by_period": [of(method, period=period) for period in config["periods"]]}
    if method == "stale table":
        grid = [
            [of(method, period=p, momentum=m) for p in config["periods"]] for m in config["momenta"]
        ]
        return {"by_momentum_and_period": grid}
    if method == "IMM moving average":
        generator = torch.Generator().manual_seed(unit["seed"])
        return {
            "by_momentum": [of(method, momentum=m, generator=generator) for m in config["momenta"]]
        }
    return {"accuracy": of(method)}


def _extra(unit: dict, config: dict, device: torch.device) -> dict:
    plane, data = _drawn({**unit, "n": LARGEST}, config, device)
    steps, longer = config["steps"], config["sizes"] + config["longer"]
    base = torch.stack(
        [plane.accuracy(train(data.first(n), "baseline", steps=steps)) for n in longer]
    )
    ours = [
        plane.accuracy(train(data.first(n), "IMM exact", schedule(n), steps=steps))
        for n in config["sizes"]
    ]
    generator = torch.Generator().manual_seed(unit["seed"])
    return extra_data(
        longer, base.cpu(), config["sizes"], torch.stack(ours).cpu(), config["bootstrap"], generator
    )


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


def _experiment(
    name: str, description: str, full: dict, quick: dict, axes: tuple, run, table=_TABLE
) -> Experiment:
    full = {"runs": 300, "normals": PLANES, "steps": 10_000, **full}
    return Experiment(
        name=f"logistic-{name}",
        description=description,
        scales={"full": full, "ci": {**full, **_QUICK, **quick}},
        units=lambda config, seed: _grid(config, seed, *axes),
        run=run,
        table=table,
        check=_check,
    )


EXPERIMENTS = [
    _experiment(
        "sizes",
        "accuracy against data size, scheduled λ (Figure 1)",
        {"sizes": SIZES},
        {"sizes": [2, 10]},
        ("normals", "sizes"),
        _sizes,
    ),
    _experiment(
        "fixed",
        "accuracy against data size at λ = 1.5 (Table 4)",
        {"runs": 4 * paper.RUNS, "sizes": list(paper.TABLE_4), "lam": paper.LAM},
        {"sizes": [5, 20]},
        ("normals", "sizes"),
        _fixed,
    ),
    _experiment(
        "search",
        "noising at λ = 1.5 for many planes: does any rise as late as Table 4's?",
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
        _search,
        _TABLE_SEARCH,
    ),
    _experiment(
        "plane",
        "Table 4 on the plane (1, 3, 3), whose noising is the nearest of those searched",
        {
            "runs": paper.RUNS,
            "normals": [[1, 3, 3]],
            "sizes": list(paper.TABLE_4),
            "lam": paper.LAM,
            "steps": 6000,
        },
        {"normals": [[1, 3, 3]], "sizes": [5, 20]},
        ("normals", "sizes"),
        _fixed,
    ),
    _experiment(
        "columns",
        "all three columns of Table 4 for many planes, with soft and redrawn hard labels",
        {
            "runs": 60,
            "normals": paper.search_planes(),
            "sizes": [5, 10, 20, 30],  # a quarter of the work of all seven
            "lam": paper.LAM,
            "steps": [1000, 3000],
        },
        {"steps": [50, 100]},
        ("normals",),
        _columns,
        _table_columns,
    ),
    _experiment(
        "lambda",
        "accuracy and restricted risk against λ / (1 + λ) (Figures 4 and 6)",
        {
            "normals": [[1, 1, 1]],
            "sizes": [2, 10, 20, 50],
            "lrs": [0.1, 1.0],
            "rhos": RHOS,
            "steps": 3000,
        },
        {"sizes": [10], "lrs": [1.0], "rhos": [0.0, 0.5, 0.9]},
        ("normals", "lrs", "sizes"),
        _lambda,
        _TABLE_LAMBDA,
    ),
    _experiment(
        "quality",
        "targets of lower quality, and a λ lowered with them (Figure 8)",
        {
            "normals": [[1, 1, 1]],
            "sizes": SIZES,
            "coins": [0.0, 0.2, 0.5],
            "parts": [1.0, 0.6, 0.3],
            "steps": 3000,
        },
        {"sizes": [10], "coins": [0.0, 0.5], "parts": [1.0, 0.3]},
        ("normals", "sizes"),
        _quality,
    ),
    _experiment(
        "variants",
        "serialized and moving-average IMM beside exact IMM and noising (Figure 10)",
        {"normals": [[1, 1, 1]], "sizes": SIZES, "steps": 3000},
        {"sizes": [5, 10]},
        ("normals", "sizes"),
        _variants,
    ),
    _experiment(
        "stability",
        "accuracy against refresh period and momentum of the table",
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
        _stability,
        _table_stability,
    ),
    _experiment(
        "extra-data",
        "how many more points the baseline needs for the accuracy of IMM",
        {"sizes": SIZES, "longer": [60, 70, 80], "bootstrap": 2000},
        {"sizes": [5, 10, 20], "longer": [30], "bootstrap": 50},
        ("normals",),
        _extra,
        _TABLE_EXTRA,
    ),
]
