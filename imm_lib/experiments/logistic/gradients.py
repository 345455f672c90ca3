"""Bias and variance of the estimators' gradients, one data point a step, against the exact IMM
gradient.
"""

import torch
from torch import Tensor

from imm_lib.experiments import Experiment
from imm_lib.experiments.logistic import terms
from imm_lib.experiments.logistic.problem import Data, Plane
from imm_lib.experiments.logistic.training import gradient, logits, train
from imm_lib.experiments.paper import schedule
from imm_lib.experiments.table import Table


def _vectors(place: Tensor, slope: Tensor, data: Data) -> Tensor:
    """(n, k, R) contexts and derivatives by the logits there -> (4, n, R), each point's gradient by
    the weights.
    """
    flat = place.flatten(0, 1)
    rest = [(slope * x.gather(0, flat).view(place.shape)).sum(1) for x in data.extended]
    total = slope.sum(1)
    return torch.stack([total * data.short, *rest, total])


def _drawn(
    data: Data, config: dict, generator: torch.Generator
) -> dict[str, tuple[terms.Drawn, int]]:
    """The estimators that draw contexts, and after how many draws their tables are full."""
    found = {f"sampled, k = {k}": (terms.sampled(data, k, generator), 0) for k in config["k"]}
    for m in config["momenta"]:
        average = terms.moving_average(data, m, generator)
        found[f"moving average, momentum {m:g}"] = average, int(3 / m)
    one = terms.drawer(terms.kernel(data), 1, generator)
    noising = terms.Drawn(one, lambda q: q - data.target.unsqueeze(1))
    return {**found, "noising": (noising, 0)}


def _numbers(vectors: Tensor, exact: Tensor) -> dict[str, float]:
    """Relative bias and standard deviation of a one-point estimate: both norms over the exact
    gradient's, medians.
    """
    size = exact.norm(dim=0)
    mean = vectors.mean((0, 2))
    spread = (vectors - mean[None, :, None]).square().sum(1).mean((0, 1)).sqrt()
    bias = (mean - exact).norm(dim=0)
    return {
        "bias": round((bias / size).median().item(), 4),
        "deviation": round((spread / size).median().item(), 4),
    }


def _run(unit: dict, config: dict, device: torch.device) -> dict:
    plane = Plane.through_centre(*config["normal"])
    data = plane.draw(
        config["runs"], unit["n"], torch.Generator().manual_seed(unit["seed"]), torch.float64
    )
    data = data.to(device)
    weights = train(data, "IMM exact", schedule(unit["n"]), steps=unit["steps"])
    parts, exact = logits(data, weights), gradient(data, weights, terms.exact(data))
    generator = torch.Generator().manual_seed(unit["seed"])
    # each point's own context against the exact table; nothing is drawn
    own, _ = terms.serialized(data)(*parts, 0)
    place = torch.arange(unit["n"], device=device).view(-1, 1, 1).expand(-1, 1, config["runs"])
    points = _vectors(place, unit["n"] * own.unsqueeze(1), data)
    found = {"serialized": _numbers(points[None], exact)}
    for name, (term, warm) in _drawn(data, config, generator).items():
        draws = [_vectors(*term.pairs(*parts), data) for _ in range(warm + config["draws"])]
        found[name] = _numbers(torch.stack(draws[warm:]), exact)
    return found


def _check(config: dict) -> None:
    if len(config["normal"]) != 3 or not any(config["normal"]):
        raise ValueError(f"normal must be three numbers, not all 0, got {config['normal']}")
    if 0 in config["momenta"]:
        raise ValueError(f"momenta must be above 0, got {config['momenta']}")


_FULL = {
    "normal": [1, 1, 1],
    "runs": 100,
    "sizes": [10, 20],
    "steps": [30, 300, 3000],
    "k": [1, 3, 10, 30],
    "momenta": [0.3, 0.1, 0.03],
    "draws": 400,
}

EXPERIMENTS = [
    Experiment(
        name="logistic-gradients",
        scales={
            "full": _FULL,
            "ci": {**_FULL, "runs": 10, "sizes": [10], "steps": [30], "draws": 20},
        },
        units=lambda config, seed: [
            {"seed": seed, "n": n, "steps": steps}
            for n in config["sizes"]
            for steps in config["steps"]
        ],
        run=_run,
        table=Table(
            "{estimator}",
            {"estimator": "{estimator}"},
            across=(
                "n = {n}, step {steps}",
                "bias {bias:.3f}, deviation {deviation:.2f}",
            ),
        ),
        check=_check,
    )
]
