"""What one unit of each logistic experiment computes: spreads over its Monte-Carlo runs."""

import time
from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from torch import Tensor

from imm_lib.experiments.logistic.problem import Data, Plane
from imm_lib.experiments.logistic.readings import extra_data
from imm_lib.experiments.logistic.training import along, ratio, train
from imm_lib.experiments.paper import schedule
from imm_lib.experiments.spread import spread

LARGEST = 80
"""Points drawn for every run; smaller data sets are their beginnings, so that sizes are nested."""

TRAINED = ("baseline", "noising", "IMM exact")
"""The methods of Figure 1 and Table 4; interpolation is the baseline at prediction time."""

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


def _fitted(unit: dict, config: dict, device: torch.device) -> tuple[Data, Callable[..., Tensor]]:
    """A unit's data, and (method, data, ρ, options of the method) -> (R,) test accuracies; by
    default on these data and with the scheduled λ.
    """
    plane, own = _drawn(unit, config, device)
    scheduled = schedule(unit["n"])

    def accuracy(
        method: str, data: Data = own, rho: float = scheduled, **options: object
    ) -> Tensor:
        return plane.accuracy(train(data, method, rho, steps=config["steps"], **options))

    return own, accuracy


def _paired(accuracy: dict[str, Tensor]) -> dict:
    """Each method's spread over runs, and its difference from the baseline's run by run, in
    points.
    """
    found: dict[str, dict] = {name: spread(value) for name, value in accuracy.items()}
    for name in accuracy.keys() - {"baseline"}:
        found[name] |= {"above_baseline": spread(accuracy[name] - accuracy["baseline"])}
    return found


def sizes(unit: dict, config: dict, device: torch.device) -> dict:
    """Accuracy at one data size with the scheduled λ, and what each method takes."""
    plane, data = _drawn(unit, config, device)
    rho, seconds = schedule(unit["n"]), time.process_time()
    weights = {name: train(data, name, rho, steps=config["steps"]) for name in TRAINED}
    seconds = time.process_time() - seconds
    accuracy = {name: plane.accuracy(w) for name, w in weights.items()}
    accuracy["interpolation"] = plane.accuracy(weights["baseline"], share=rho)
    return {
        "rho": rho,
        "accuracy": _paired(accuracy),
        "imm_above_noising": spread(accuracy["IMM exact"] - accuracy["noising"]),
        "cpu_s": round(seconds, 3),
    }


def fixed(unit: dict, config: dict, device: torch.device) -> dict:
    """Accuracy at one data size with λ held at one value, and with the scheduled one."""
    _, accuracy = _fitted(unit, config, device)
    found = {name: accuracy(name, rho=ratio(config["lam"])) for name in TRAINED}
    return {"accuracy": _paired({**found, "IMM exact, scheduled": accuracy("IMM exact")})}


COLUMNS = {
    "baseline": "baseline",
    "noising, soft labels": "noising",
    "noising, hard labels": "noising, hard labels",
    "IMM exact": "IMM exact",
}
"""What the search for Table 4 trains: its three columns, the second in two ways."""


def _along(
    unit: dict, config: dict, device: torch.device, columns: dict[str, str]
) -> dict[str, list[Tensor]]:
    """The accuracies of a plane's columns at all sizes, by the steps of training."""
    plane, data = _drawn({**unit, "n": max(config["sizes"])}, config, device)
    found: dict[str, list[Tensor]] = {}
    for column, method in columns.items():
        options: dict[str, Any] = {}
        if method == "noising, hard labels":
            options["generator"] = torch.Generator().manual_seed(unit["seed"])
        for n in config["sizes"]:
            path = along(data.first(n), method, ratio(config["lam"]), config["steps"], **options)
            for steps, weights in path:
                own = found.setdefault(f"{column}, {steps} steps", [])
                own.append(plane.accuracy(weights))
    return found


def search(unit: dict, config: dict, device: torch.device) -> dict:
    """Mean accuracies of noising for one plane, by labels and steps, at all sizes."""
    found = _along(unit, config, device, {name: name for name in ("noising", "reverse-KD")})
    return {
        "accuracy": {
            name: [round(accuracy.mean().item(), 2) for accuracy in own]
            for name, own in found.items()
        }
    }


def columns(unit: dict, config: dict, device: torch.device) -> dict:
    """Table 4's three columns for one plane, by labels and steps."""
    table = {}
    for name, own in _along(unit, config, device, COLUMNS).items():
        spreads = [spread(accuracy) for accuracy in own]
        table[name] = [{"mean": found["mean"], "se": found["se"]} for found in spreads]
    return {"columns": table}


def by_lambda(unit: dict, config: dict, device: torch.device) -> dict:
    """Accuracy and restricted risk over λ / (1 + λ), at one data size and rate."""
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


def quality(unit: dict, config: dict, device: torch.device) -> dict:
    """Accuracy with targets mixed with a coin, and with parts of the scheduled λ."""
    data, accuracy = _fitted(unit, config, device)
    found = {"baseline": accuracy("baseline")}
    for coin, part in product(config["coins"], config["parts"]):
        found[f"coin {coin:g}, part {part:g}"] = accuracy(
            "IMM exact", data.weaken(coin), part * schedule(unit["n"])
        )
    return {"accuracy": _paired(found)}


def variants(unit: dict, config: dict, device: torch.device) -> dict:
    """Accuracy of every IMM estimator beside the exact one and noising."""
    _, accuracy = _fitted(unit, config, device)
    found = {"baseline": accuracy("baseline")}
    for method, settings in VARIANTS.items():
        if method in ("IMM sampled", "IMM moving average"):
            settings = {**settings, "generator": torch.Generator().manual_seed(unit["seed"])}
        found[method] = accuracy(method, **settings)
    return {"accuracy": _paired(found)}


def stability(unit: dict, config: dict, device: torch.device) -> dict:
    """Accuracy of one method over refresh periods and momenta."""
    _, accuracy = _fitted(unit, config, device)
    method, periods, momenta = unit["method"], config["periods"], config["momenta"]

    def of(**options: object) -> dict:
        return spread(accuracy(method, **options))

    if method == "IMM serialized":
        return {"by_period": [of(period=period) for period in periods]}
    if method == "stale table":
        grid = [[of(period=p, momentum=m) for p in periods] for m in momenta]
        return {"by_momentum_and_period": grid}
    if method == "IMM moving average":
        generator = torch.Generator().manual_seed(unit["seed"])
        return {"by_momentum": [of(momentum=m, generator=generator) for m in momenta]}
    return {"accuracy": of()}


def extra(unit: dict, config: dict, device: torch.device) -> dict:
    """The further data that are worth as much as IMM, per cent, for one plane."""
    data, accuracy = _fitted({**unit, "n": LARGEST}, config, device)
    sizes, longer = config["sizes"], config["sizes"] + config["longer"]
    base = torch.stack([accuracy("baseline", data.first(n)) for n in longer])
    ours = torch.stack([accuracy("IMM exact", data.first(n), schedule(n)) for n in sizes])
    generator = torch.Generator().manual_seed(unit["seed"])
    return extra_data(longer, base.cpu(), sizes, ours.cpu(), config["bootstrap"], generator)
