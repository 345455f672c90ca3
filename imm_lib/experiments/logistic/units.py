"""What one unit of each logistic experiment computes: spreads over its Monte-Carlo runs."""

import time
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


def _paired(accuracy: dict[str, Tensor]) -> dict:
    """Each method's spread over runs, and its difference from the baseline's run by run, in
    points.
    """
    base = accuracy["baseline"]
    return {
        name: {
            **spread(value),
            **({} if name == "baseline" else {"above_baseline": spread(value - base)}),
        }
        for name, value in accuracy.items()
    }


def _trained(data: Data, rho: float, steps: int) -> dict[str, Tensor]:
    """The weights of the methods that Figure 1 and Table 4 train."""
    return {name: train(data, name, rho, steps=steps) for name in TRAINED}


def sizes(unit: dict, config: dict, device: torch.device) -> dict:
    """Accuracy at one data size with the scheduled λ, and what each method takes."""
    plane, data = _drawn(unit, config, device)
    rho, seconds = schedule(unit["n"]), time.process_time()
    weights = _trained(data, rho, config["steps"])
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
    plane, data = _drawn(unit, config, device)
    weights = _trained(data, ratio(config["lam"]), config["steps"])
    weights["IMM exact, scheduled"] = train(
        data, "IMM exact", schedule(unit["n"]), steps=config["steps"]
    )
    return {"accuracy": _paired({name: plane.accuracy(w) for name, w in weights.items()})}


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


def variants(unit: dict, config: dict, device: torch.device) -> dict:
    """Accuracy of every IMM estimator beside the exact one and noising."""
    plane, data = _drawn(unit, config, device)
    accuracy = {"baseline": plane.accuracy(train(data, "baseline", steps=config["steps"]))}
    for method, settings in VARIANTS.items():
        if method in ("IMM sampled", "IMM moving average"):
            settings = {**settings, "generator": torch.Generator().manual_seed(unit["seed"])}
        accuracy[method] = plane.accuracy(
            train(data, method, schedule(unit["n"]), steps=config["steps"], **settings)
        )
    return {"accuracy": _paired(accuracy)}


def stability(unit: dict, config: dict, device: torch.device) -> dict:
    """Accuracy of one method over refresh periods and momenta."""
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


def extra(unit: dict, config: dict, device: torch.device) -> dict:
    """The further data that are worth as much as IMM, per cent, for one plane."""
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
