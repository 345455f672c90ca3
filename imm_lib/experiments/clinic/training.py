"""Training R x settings x folds models of one table as one program.

Shapes: R splits, S settings of a method, P = FOLDS + 1 parts of the training cases (all but one
fold; all), n cases, Y labels. All trainings of a split start from the same weights.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from imm_lib.experiments.clinic.kinds import Classes, Kind, Values

ROWS = 128
"""Short contexts of one step's IMM term: where there are more, as many are drawn anew."""

HIDDEN = 16
"""Units of a network's one hidden layer."""

RATES = {"linear": 0.1, "network": 0.03}
"""Of Adam at first; they fall to 0 along a cosine."""


class Cases(NamedTuple):
    """The same number of cases in each of R splits."""

    short: Tensor  # (R, n, c)
    rest: Tensor  # (R, n, f)
    label: Tensor  # (R, n)
    target: Tensor  # (R, n, Y)

    def to(self, device: torch.device) -> "Cases":
        """The same cases on another device."""
        return Cases(*(value.to(device) for value in self))

    def inputs(self) -> Tensor:
        """(R, n, c + f) all features."""
        return torch.cat([self.short, self.rest], -1)


@dataclass(frozen=True)
class Model:
    """What is trained, and how.

    Attributes:
        kind: of the labels.
        outputs: Y, or 1.
        hidden: units of a hidden layer; 0 for a linear model.
        bandwidth: of the Laplace kernel over short contexts, in standard deviations per feature.
        mixed: an extended context is the rest of a neighbour beside the asked short context, as the
            cube's features allow; otherwise a neighbour is taken whole. Linear models of two
            classes only.
        steps: of Adam.
        rate: of Adam at first.
    """

    kind: Kind
    outputs: int
    hidden: int
    bandwidth: float
    mixed: bool
    steps: int
    rate: float

    @classmethod
    def of(
        cls, name: str, classes: int, bandwidth: float, steps: int, mixed: bool = False
    ) -> "Model":
        """The model of a name, "linear" or "network"; raises ValueError for another."""
        if name not in RATES:
            raise ValueError(f"task must name a model, one of {', '.join(RATES)}, got {name!r}")
        kind: Kind = Classes if classes else Values
        hidden = HIDDEN if name == "network" else 0
        return cls(kind, classes or 1, hidden, bandwidth, mixed, steps, RATES[name])


Weights = list[Tensor]


def _start(
    model: Model, features: int, seeds: list[int], trainings: int, device: torch.device
) -> Weights:
    """First weights, the same for all trainings of a split: (R, B, ...) each."""
    sizes = [features, model.hidden, model.outputs] if model.hidden else [features, model.outputs]
    layers: Weights = []
    for width, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        drawn = torch.stack(
            [
                torch.rand(
                    fan_in, fan_out, generator=torch.Generator().manual_seed(97 * seed + width)
                )
                for seed in seeds
            ]
        )
        weight = (2 * drawn - 1) / fan_in**0.5
        # a linear model's minimum does not depend on where it starts
        weight = weight if model.hidden else torch.zeros_like(weight)
        layers.append(weight.unsqueeze(1).repeat(1, trainings, 1, 1))
        layers.append(torch.zeros(len(seeds), trainings, 1, fan_out))
    return [layer.to(device).requires_grad_() for layer in layers]


def outputs(weights: Weights, inputs: Tensor) -> Tensor:
    """(R, n, F) inputs -> (R, B, n, Y) outputs of B trainings a split."""
    found = torch.einsum("rnf,rbfh->rbnh", inputs, weights[0]) + weights[1]
    if len(weights) == 4:
        found = torch.tanh(found) @ weights[2] + weights[3]
    return found


class Settings(NamedTuple):
    """What a training is told, (R, S) each."""

    decay: Tensor
    lam: Tensor
    share: Tensor  # of the offset


class Kernel:
    """π(e|s) on the training cases of each part, by a Laplace kernel in the short context."""

    def __init__(self, short: Tensor, keep: Tensor, bandwidth: float):
        scale = bandwidth * short.shape[-1]
        self.short, self.keep, self.scale = short, keep.float(), scale
        self.whole = self._rows(short) if short.shape[1] <= ROWS else None

    def _rows(self, asked: Tensor) -> Tensor:
        log_w = -torch.cdist(asked, self.short, p=1) / self.scale
        near = (log_w - log_w.amax(-1, keepdim=True)).exp().unsqueeze(1) * self.keep.unsqueeze(2)
        return near / near.sum(-1, keepdim=True).clamp(min=1e-30)

    def draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(i,) short contexts, all or ROWS of them, and (R, P, i, n) weights of their contexts."""
        n = self.short.shape[1]
        if self.whole is not None:
            return torch.arange(n, device=self.short.device), self.whole
        index = torch.randperm(n, generator=generator)[:ROWS].to(self.short.device)
        return index, self._rows(self.short[:, index])


def train(
    model: Model, cases: Cases, keep: Tensor, settings: Settings, term: str, seeds: list[int]
) -> Weights:
    """Minimise cross-entropy + penalty + λ · term on every part at every setting.

    Args:
        model: what is trained.
        cases: training cases of R splits.
        keep: (R, P, n) the cases of each part.
        settings: (R, S) each.
        term: "none", "match" (reverse distillation) or "IMM".
        seeds: of the R splits: first weights.

    Returns:
        weights, (R, S, P, ...) each.
    """
    kind, (runs, parts, n) = model.kind, keep.shape
    trainings = settings.lam.shape[1]
    inputs, mask = cases.inputs(), keep.float().unsqueeze(1)
    weights = _start(model, inputs.shape[-1], seeds, trainings * parts, inputs.device)
    counts = mask.sum(-1)  # (R, 1, P)
    offset = kind.offset(cases.target).view(runs, 1, 1, n, -1) * settings.share.view(
        runs, -1, 1, 1, 1
    )
    label, target = cases.label.view(runs, 1, 1, n), cases.target.view(runs, 1, 1, n, -1)
    lam, decay = settings.lam.unsqueeze(-1), settings.decay.unsqueeze(-1)
    kernel = Kernel(cases.short, keep, model.bandwidth) if term == "IMM" else None
    generator = torch.Generator().manual_seed(seeds[0])
    optimiser = torch.optim.Adam(weights, model.rate)
    course = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, model.steps)
    for _ in range(model.steps):
        raw = outputs(weights, inputs).unflatten(1, (trainings, parts)) + offset
        answer = kind.answer(raw)
        loss = (mask * kind.loss(answer, label)).sum(-1) / counts
        norms = [w.square().sum((-2, -1)).unflatten(1, (trainings, parts)) for w in weights[::2]]
        loss = loss + decay / (2 * counts) * torch.stack(norms).sum(0)
        if term == "match":
            loss = loss + lam * (mask * kind.match(target, answer)).sum(-1) / counts
        elif kernel is not None:
            index, near = kernel.draw(generator)
            induced = (
                _mixed(weights, cases, offset, near, trainings)
                if model.mixed
                else kind.average(near, answer)
            )
            rows = mask[..., index]
            risk = (rows * kind.match(target[..., index, :], induced)).sum(-1)
            loss = loss + lam * risk / rows.sum(-1).clamp(min=1)
        optimiser.zero_grad()
        loss.sum().backward()
        optimiser.step()
        course.step()
    return [w.detach().unflatten(1, (trainings, parts)) for w in weights]


def _mixed(weights: Weights, cases: Cases, offset: Tensor, near: Tensor, trainings: int) -> Tensor:
    """(R, S, P, n, 2) log Q̂ of a linear model of two classes, every short context beside every
    rest.
    """
    known = cases.short.shape[-1]

    def lead(output: Tensor) -> Tensor:
        """The second class's output less the first's."""
        return output[..., 1] - output[..., 0]

    short = outputs([weights[0][:, :, :known], weights[1]], cases.short)
    rest = torch.einsum("rnf,rbfh->rbnh", cases.rest, weights[0][:, :, known:])
    parts = near.shape[1]
    own = lead(short.unflatten(1, (trainings, parts)) + offset)
    other = lead(rest.unflatten(1, (trainings, parts)))
    one = torch.sigmoid(own.unsqueeze(-1) + other.unsqueeze(-2))
    induced = (near.unsqueeze(1) * one).sum(-1).clamp(1e-7, 1 - 1e-7)
    return torch.stack([1 - induced, induced], -1).log()
