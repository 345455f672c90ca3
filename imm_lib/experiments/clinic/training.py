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
"""Short contexts of one step's IMM term. Where there are more cases, the distinct short contexts
stand for them if there are no more than this; otherwise as many cases are drawn anew.
"""

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


class Asked(NamedTuple):
    """The short contexts of one step's IMM term, i in each split."""

    near: Tensor  # (R, P, i, n) π(e|s)
    target: Tensor  # (R, i, Y)
    cases: Tensor  # (R, P, i) how many training cases a row stands for


class Kernel:
    """π(e|s) on the training cases of each part, by a Laplace kernel in the short context."""

    def __init__(self, cases: Cases, keep: Tensor, bandwidth: float):
        self.short, self.target, self.keep = cases.short, cases.target, keep.to(cases.short)
        self.scale = bandwidth * self.short.shape[-1]
        self.whole = self._every() if self.short.shape[1] <= ROWS else self._distinct()

    def _near(self, asked: Tensor) -> Tensor:
        log_w = -torch.cdist(asked, self.short, p=1) / self.scale
        near = (log_w - log_w.amax(-1, keepdim=True)).exp().unsqueeze(1) * self.keep.unsqueeze(2)
        return near / near.sum(-1, keepdim=True).clamp(min=1e-30)

    def _every(self) -> Asked:
        return Asked(self._near(self.short), self.target, self.keep)

    def _distinct(self) -> Asked | None:
        """One row for each distinct short context of a split, or None if they are too many."""
        found = [torch.unique(s, dim=0, return_inverse=True)[1] for s in self.short]
        group = torch.stack(found)
        size = int(group.max()) + 1
        if size > ROWS:
            return None
        belongs = group.unsqueeze(1) == torch.arange(size, device=group.device).unsqueeze(1)
        first = belongs.int().argmax(-1).unsqueeze(-1)  # (R, i, 1); 0 where a split has fewer
        short, target = (torch.take_along_dim(v, first, 1) for v in (self.short, self.target))
        return Asked(self._near(short), target, self.keep @ belongs.mT.to(self.keep))

    def draw(self, generator: torch.Generator) -> Asked:
        """All short contexts, or those of ROWS cases."""
        if self.whole is not None:
            return self.whole
        index = torch.randperm(self.short.shape[1], generator=generator)[:ROWS]
        index = index.to(self.short.device)
        near = self._near(self.short[:, index])
        return Asked(near, self.target[:, index], self.keep[..., index])


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
    kernel = Kernel(cases, keep, model.bandwidth) if term == "IMM" else None
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
            asked = kernel.draw(generator)
            induced = (
                _mixed(weights, cases, offset, asked.near, trainings)
                if model.mixed
                else kind.average(asked.near, answer)
            )
            rows = asked.cases.unsqueeze(1)
            risk = (rows * kind.match(asked.target[:, None, None], induced)).sum(-1)
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
