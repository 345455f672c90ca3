"""Every method on R splits of one table at once: searches by folds, and what the best say of test
cases.

Shapes are those of :mod:`imm_lib.experiments.clinic.training`.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from imm_lib.experiments.clinic.kinds import Classes, Kind
from imm_lib.experiments.clinic.protocol import (
    DECAYS,
    FOLDS,
    OFFSETS,
    SHARES,
    WEIGHTS,
    folds,
)
from imm_lib.experiments.clinic.training import Cases, Model, Settings, Weights, outputs, train


class Fitted(NamedTuple):
    """What the trainings of one method say."""

    held_out: Tensor  # (R, S, n, Y) answers for each training case, by the part without it
    test: Tensor  # (R, S, N, Y) answers for the test cases, by all training cases
    weights: Weights  # (R, S, ...) of all training cases


Fit = Callable[[str, Settings], Fitted]


def fitter(model: Model, train_cases: Cases, test_cases: Cases, seeds: list[int]) -> Fit:
    """A function that trains by a term at some settings, on folds that are the same each time."""
    n = train_cases.label.shape[1]
    parts = [folds(n, torch.Generator().manual_seed(seed)) for seed in seeds]
    keep = torch.stack(parts).to(train_cases.label.device)

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
    rows = torch.arange(len(index), device=index.device)
    picked = Settings(*(value[rows, index].unsqueeze(1) for value in settings))
    return Choice(fitted.held_out[rows, index], fitted.test[rows, index], picked)


def mixed_in(kind: Kind, choice: Choice, train_cases: Cases, test_cases: Cases) -> Choice:
    """A trained method's answers mixed with the target, at the best of SHARES."""
    share = torch.tensor(SHARES, device=choice.test.device).view(1, -1, 1, 1)

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
    none = torch.zeros(runs, 1, device=label.device)

    def each(values: tuple[float, ...]) -> Tensor:
        return torch.tensor(values, device=label.device).expand(runs, -1)

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
    fixed = plain.settings._replace(lam=none + 1)
    untuned = fit("IMM", fixed)
    record("IMM, λ = 1", untuned.test[:, 0], fixed)
    if suggest is not None:
        lam = suggest([w[:, 0] for w in untuned.weights]).to(label.device)
        fixed = fixed._replace(lam=lam.unsqueeze(1))
        record("IMM, suggested λ", fit("IMM", fixed).test[:, 0], fixed)
    alone = test_cases.target.log() if kind is Classes else test_cases.target
    record("target", alone, Settings(none, none, none + 1))
    return found
