"""Every method on R splits of one table at once: R x settings x folds trainings as one program.

Shapes: R splits, S settings of a method, P = FOLDS + 1 parts of the training cases (all but one
fold; all), n cases, Y labels. All trainings of a split start from the same weights.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from imm_lib.experiments.clinic.kinds import Classes, Kind, Values
from imm_lib.experiments.clinic.protocol import (
    DECAYS,
    FOLDS,
    OFFSETS,
    SHARES,
    WEIGHTS,
    folds,
)

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


def _start(model: Model, features: int, seeds: list[int], trainings: int) -> Weights:
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
    return [layer.requires_grad_() for layer in layers]


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
            return torch.arange(n), self.whole
        index = torch.randperm(n, generator=generator)[:ROWS]
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
    weights = _start(model, inputs.shape[-1], seeds, trainings * parts)
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


class Fitted(NamedTuple):
    """What the trainings of one method say."""

    held_out: Tensor  # (R, S, n, Y) answers for each training case, by the part without it
    test: Tensor  # (R, S, N, Y) answers for the test cases, by all training cases
    weights: Weights  # (R, S, ...) of all training cases


Fit = Callable[[str, Settings], Fitted]


def fitter(model: Model, train_cases: Cases, test_cases: Cases, seeds: list[int]) -> Fit:
    """A function that trains by a term at some settings, on folds that are the same each time."""
    n = train_cases.label.shape[1]
    keep = torch.stack([folds(n, torch.Generator().manual_seed(seed)) for seed in seeds])

    def answers(weights: Weights, cases: Cases, settings: Settings) -> Tensor:
        flat = [w.flatten(1, 2) for w in weights]
        raw = outputs(flat, cases.inputs()).unflatten(1, weights[0].shape[1:3])
        share = settings.share.view(*settings.share.shape, 1, 1, 1)
        offset = model.kind.offset(cases.target)[:, None, None]
        return model.kind.answer(raw + share * offset)

    def fit(term: str, settings: Settings) -> Fitted:
        weights = train(model, train_cases, keep, settings, term, seeds)
        by_part = answers([w[:, :, :FOLDS] for w in weights], train_cases, settings)
        out = (~keep[:, :FOLDS]).float()[:, None, :, :, None]
        last = [w[:, :, FOLDS:] for w in weights]
        tested = answers(last, test_cases, settings)[:, :, 0]
        return Fitted((by_part * out).sum(2), tested, [w[:, :, 0] for w in last])

    return fit


class Choice(NamedTuple):
    """A method with its knobs where the folds have them, for each of R splits."""

    held_out: Tensor  # (R, n, Y)
    test: Tensor  # (R, N, Y)
    settings: Settings  # (R, 1) each


def choose(kind: Kind, fitted: Fitted, settings: Settings, label: Tensor) -> Choice:
    """The setting of the least loss on the cases left out, for each split."""
    index = kind.loss(fitted.held_out, label.unsqueeze(1)).mean(-1).argmin(1)
    rows = torch.arange(len(index))
    picked = Settings(*(value[rows, index].unsqueeze(1) for value in settings))
    return Choice(fitted.held_out[rows, index], fitted.test[rows, index], picked)


def mixed_in(kind: Kind, choice: Choice, train_cases: Cases, test_cases: Cases) -> Choice:
    """A trained method's answers mixed with the target, at the best of SHARES."""
    share = torch.tensor(SHARES).view(1, -1, 1, 1)

    def mixed(answer: Tensor, cases: Cases) -> Tensor:
        return kind.mix(answer.unsqueeze(1), cases.target.unsqueeze(1), share)

    fitted = Fitted(mixed(choice.held_out, train_cases), mixed(choice.test, test_cases), [])
    shares = share.flatten().expand(len(choice.test), -1)
    settings = Settings(*(value.expand(-1, len(SHARES)) for value in choice.settings))
    return choose(kind, fitted, settings._replace(share=shares), train_cases.label)


def compare(
    model: Model,
    train_cases: Cases,
    test_cases: Cases,
    seeds: list[int],
    suggest: Callable[[Weights], Tensor] | None = None,
) -> dict[str, dict[str, list[float]]]:
    """Every method's test losses and settings.

    Args:
        model: what is trained.
        train_cases: of R splits.
        test_cases: of the same splits.
        seeds: of the splits.
        suggest: weights of IMM at λ = 1, (R, ...) each -> (R,) suggested λ.

    Returns:
        by method: "loss", "hit", "lam", "share" and "decay", a number for each split.
    """
    kind, label, runs = model.kind, train_cases.label, len(seeds)
    fit = fitter(model, train_cases, test_cases, seeds)
    found: dict[str, dict[str, list[float]]] = {}
    none = torch.zeros(runs, 1)

    def each(values: tuple[float, ...]) -> Tensor:
        return torch.tensor(values).expand(runs, -1)

    def record(name: str, answer: Tensor, settings: Settings) -> None:
        values = {
            "loss": kind.loss(answer, test_cases.label).double().mean(-1),
            "hit": kind.hit(answer, test_cases.label).mean(-1),
            **{key: value.squeeze(1) for key, value in settings._asdict().items()},
        }
        found[name] = {key: [round(x, 6) for x in v.tolist()] for key, v in values.items()}

    def search(term: str, begin: Settings, knob: str, values: tuple[float, ...]) -> Choice:
        """The best of a knob's values, the rest as it was."""
        wide = Settings(*(value.expand(-1, len(values)) for value in begin))
        settings = wide._replace(**{knob: each(values)})
        return choose(kind, fit(term, settings), settings, label)

    def tune(name: str, term: str, begin: Settings, knob: str, values: tuple) -> Choice:
        """The best of a knob's values, and then of the decays beside it."""
        first = search(term, begin, knob, values)
        choice = search(term, first.settings, "decay", DECAYS)
        record(name, choice.test, choice.settings)
        return choice

    def mix(name: str, choice: Choice) -> None:
        chosen = mixed_in(kind, choice, train_cases, test_cases)
        record(name, chosen.test, chosen.settings)

    plain = search("none", Settings(none, none, none), "decay", DECAYS)
    record("plain", plain.test, plain.settings)
    mix("interpolation", plain)
    offset = tune("offset", "none", plain.settings, "share", OFFSETS)
    tune("reverse distillation", "match", plain.settings, "lam", WEIGHTS)
    imm = tune("IMM", "IMM", plain.settings, "lam", WEIGHTS)
    tune("IMM + offset", "IMM", offset.settings, "lam", WEIGHTS)
    mix("IMM + interpolation", imm)
    fixed = plain.settings._replace(lam=torch.ones(runs, 1))
    untuned = fit("IMM", fixed)
    record("IMM, λ = 1", untuned.test[:, 0], fixed)
    if suggest is not None:
        fixed = fixed._replace(lam=suggest([w[:, 0] for w in untuned.weights]).unsqueeze(1))
        record("IMM, suggested λ", fit("IMM", fixed).test[:, 0], fixed)
    alone = test_cases.target.log() if kind is Classes else test_cases.target
    record("target", alone, Settings(none, none, torch.ones(runs, 1)))
    return found
