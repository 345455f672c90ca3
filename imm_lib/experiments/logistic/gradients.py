"""Bias and variance of the estimators' gradients, one data point a step, against the exact IMM
gradient.
"""

import torch
from torch import Tensor

from imm_lib.experiments import Experiment
from imm_lib.experiments.logistic import terms
from imm_lib.experiments.logistic.problem import Data, Plane
from imm_lib.experiments.logistic.training import train
from imm_lib.experiments.paper import schedule
from imm_lib.experiments.table import Table


def _vectors(gradient: Tensor, place: Tensor, data: Data) -> Tensor:
    """(n, k, R) derivatives by the logits of drawn contexts -> (4, n, R), each point's gradient by
    the weights.
    """
    n, k, runs = gradient.shape
    flat = place.reshape(n * k, runs)
    rest = [(gradient * x.gather(0, flat).view(n, k, runs)).sum(1) for x in data.extended]
    total = gradient.sum(1)
    return torch.stack([total * data.short, *rest, total])


class Point:
    """Where gradients are compared: data sets of n points, and weights on the way of exact IMM's
    training.
    """

    def __init__(self, data: Data, weights: Tensor):
        self.data, self.weight = data, terms.kernel(data)
        x2, x3 = data.extended
        self.short, self.extended = (
            weights[0] * data.short,
            weights[1] * x2 + weights[2] * x3 + weights[3],
        )
        n, runs = data.short.shape
        self.every = torch.arange(n, device=data.short.device)[None, :, None].expand(n, n, runs)
        self.own = torch.arange(n, device=data.short.device)[:, None, None].expand(n, 1, runs)
        self.q = self.at(self.every)
        self.induced = (self.weight * self.q).sum(1)

    def at(self, place: Tensor) -> Tensor:
        """(n, k, R) the model's probability of label 1 in the contexts ``place``."""
        n, k, runs = place.shape
        return torch.sigmoid(
            self.short.unsqueeze(1)
            + self.extended.gather(0, place.reshape(n * k, runs)).view(n, k, runs)
        )

    def corrected(
        self, table: Tensor, place: Tensor, q: Tensor, share: Tensor | float = 1.0
    ) -> Tensor:
        """(4, n, R) gradients of eq. 13's corrected cross-entropy in the contexts ``place`` against
        a table of Q̂.
        """
        slope = terms._slope(self.data.target, table).unsqueeze(1)
        return _vectors(slope * share * q * (1 - q), place, self.data)

    def exact(self) -> Tensor:
        """(4, R) the gradient of the exact IMM risk."""
        return self.corrected(self.induced, self.every, self.q, self.weight).mean(1)

    def serialized(self, draws: int, generator: torch.Generator) -> Tensor:
        """(1, 4, n, R): the points' own contexts against the exact table; nothing is drawn."""
        return self.corrected(self.induced, self.own, self.at(self.own))[None]

    def sampled(self, k: int):
        """(draws, 4, n, R): k drawn contexts a point, the table from those k."""

        def draw_all(draws: int, generator: torch.Generator) -> Tensor:
            draw = terms.drawer(self.weight, k, generator)
            places = [draw() for _ in range(draws)]
            answers = [(place, self.at(place)) for place in places]
            return torch.stack([self.corrected(q.mean(1), place, q, 1 / k) for place, q in answers])

        return draw_all

    def moving_average(self, momentum: float):
        """(draws, 4, n, R): one drawn context a point against the running table that such contexts
        have filled.
        """

        def draw_all(draws: int, generator: torch.Generator) -> Tensor:
            draw, table, answers = terms.drawer(self.weight, 1, generator), None, []
            warm = int(3 / momentum)
            for step in range(warm + draws):
                place = draw()
                q = self.at(place)
                table = q[:, 0] if table is None else torch.lerp(table, q[:, 0], momentum)
                if step >= warm:
                    answers.append(self.corrected(table, place, q))
            return torch.stack(answers)

        return draw_all

    def noising(self, draws: int, generator: torch.Generator) -> Tensor:
        """(draws, 4, n, R): the target against the model in one drawn context."""
        draw, answers = terms.drawer(self.weight, 1, generator), []
        for _ in range(draws):
            place = draw()
            answers.append(
                _vectors(self.at(place) - self.data.target.unsqueeze(1), place, self.data)
            )
        return torch.stack(answers)


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
    point = Point(data, train(data, "IMM exact", schedule(unit["n"]), steps=unit["steps"]))
    estimators = {
        "serialized": point.serialized,
        **{f"sampled, k = {k}": point.sampled(k) for k in config["k"]},
        **{f"moving average, momentum {m:g}": point.moving_average(m) for m in config["momenta"]},
        "noising": point.noising,
    }
    generator = torch.Generator().manual_seed(unit["seed"])
    exact = point.exact()
    return {
        name: _numbers(of(config["draws"], generator), exact) for name, of in estimators.items()
    }


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
