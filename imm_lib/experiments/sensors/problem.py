"""An old system reads one sensor of many cases, a new one all of few: the partitions of the data,
and every method's models.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, nll_loss

import imm_lib as imm
from imm_lib import checks
from imm_lib.experiments import options
from imm_lib.experiments.training import minimise

CLIP = 3.0
"""Standardised values are clipped there: few cases estimate the scale of a heavy-tailed sensor
badly.
"""

Model = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Task:
    """One partition. Column ``sensor`` of ``x`` is ``s``; both are in standard deviations of the
    new cases.
    """

    x: Tensor  # (cases, sensors) float64
    y: Tensor  # (cases,)
    s: Tensor  # (cases,)
    sensor: int
    old: Tensor
    new: Tensor
    valid: Tensor
    test: Tensor
    target: Callable[[Tensor], Tensor]

    def to(self, device: torch.device) -> Task:
        """The same partition on another device."""
        tensors: dict[str, Any]  # of fields that mypy cannot tell apart here
        tensors = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **tensors)


def task(sensor: str, n: int, seed: int, old: int, valid: int, test: int) -> Task:
    """Partition and standardise the data, and fit the restricted model, a logistic regression on
    one sensor.

    All sensors are standardised by the n new cases, the only ones that have them all.

    Raises:
        ValueError: the data set has no such sensor, or too few cases.
    """
    from sklearn.datasets import load_breast_cancer
    from sklearn.linear_model import LogisticRegression

    bunch = load_breast_cancer()
    names = [str(name) for name in bunch.feature_names]
    options.one_of("sensor", sensor, names)
    if checks.count("n", n) < 2:
        raise ValueError(f"n must be at least 2, by which sensors are standardised, got {n}")
    x, y = torch.tensor(bunch.data), torch.tensor(bunch.target)
    if old + n + valid + test > len(y):
        raise ValueError(
            f"old + n + valid + test must be at most {len(y)}, got {old + n + valid + test}"
        )
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    held = order[old : old + valid + test]
    parts = order[:old], order[len(y) - n :], held[:valid], held[valid:]
    column = names.index(sensor)
    x = ((x - x[parts[1]].mean(0)) / x[parts[1]].std(0)).clamp(-CLIP, CLIP)
    s = x[:, column].contiguous()
    fitted = LogisticRegression().fit(s[parts[0], None], y[parts[0]])
    slope, intercept = fitted.coef_.item(), fitted.intercept_.item()

    def target(short: Tensor) -> Tensor:
        one = torch.sigmoid(slope * short + intercept)
        return torch.stack([1 - one, one], dim=1)

    return Task(x, y, s, column, *parts, target)


def fit(
    x: Tensor,
    y: Tensor,
    decay: float,
    extra: Callable[[Model], Tensor] | None = None,
    offset: Tensor | None = None,
):
    """Logistic regression by L-BFGS from zero: mean cross-entropy + decay / 2 · |W|² +
    ``extra(model)``, in nats.

    Args:
        x: (N, sensors) inputs.
        y: (N,) labels, 0 or 1.
        decay: weight decay.
        extra: maps the model to a further loss.
        offset: (N, 2) fixed logits to add while training; whoever predicts adds theirs.

    Returns:
        the model, (N, sensors) -> (N, 2) log-probabilities, and the bare logits, (N, sensors) ->
        (N, 2).
    """
    weight, bias = x.new_zeros(x.shape[1], 2), x.new_zeros(2)

    def logits(inputs: Tensor) -> Tensor:
        return inputs @ weight + bias

    def model(inputs: Tensor) -> Tensor:
        return logits(inputs).log_softmax(-1)

    def loss() -> Tensor:
        raw = logits(x) if offset is None else logits(x) + offset
        value = cross_entropy(raw, y) + decay / 2 * weight.square().sum()
        return value if extra is None else value + extra(model)

    minimise(loss, [weight, bias], 100, tolerance_grad=1e-6)
    return model, logits


def mixed(model: Model, t: Task, rows: Tensor) -> imm.estimators.Query:
    """A model at the cases ``rows``, each with the asked value of the sensor; of a group, with its
    own.
    """
    x = t.x[rows]

    def query(asked: Tensor, extended: Tensor) -> Tensor:
        inputs = x[extended]
        if asked.is_floating_point():
            inputs[:, t.sensor] = asked
        return model(inputs)

    return query


def imm_penalties(t: Task, rows: Tensor, config: dict) -> dict[str, Callable[[Model], Tensor]]:
    """The IMM risk of a model on the cases ``rows``: with the chapter's contexts, with others, with
    an empty target.
    """
    s = t.s[rows]
    prior = torch.bincount(t.y[t.old], minlength=2).double() / len(t.old)
    shares = torch.linspace(0, 1, config["groups"] + 1, dtype=torch.float64)[1:-1]
    edges = torch.quantile(t.s[t.old], shares.to(s.device))
    group = torch.bucketize(t.s, edges)
    counts = s.new_zeros(config["groups"], 2).index_put_(
        (group[t.old], t.y[t.old]), s.new_ones(len(t.old)), accumulate=True
    )
    table = (counts + 0.5) / (counts + 0.5).sum(1, keepdim=True)

    def kernel(target, bandwidth):
        return imm.ExactIMM(target, imm.KernelContexts(s, bandwidth)), s

    arms = {
        "IMM": kernel(t.target, config["bandwidth"]),
        **{f"IMM, bandwidth {b:g}": kernel(t.target, b) for b in config["other_bandwidths"]},
        "IMM, groups": (
            imm.ExactIMM(table, imm.GroupedContexts(group[rows], config["groups"])),
            group[rows],
        ),
        "IMM, prior": kernel(lambda short: prior.expand(len(short), 2), config["bandwidth"]),
    }

    def penalty(risk, short):
        return lambda model: risk(mixed(model, t, rows), short)

    return {name: penalty(*arm) for name, arm in arms.items()}


def candidates(
    t: Task, rows: Tensor, decay: float, config: dict, methods: list[str]
) -> dict[str, dict[str, Model]]:
    """Every method at every setting, trained on ``rows``: method -> setting -> case indices ->
    log-probabilities.
    """
    x, y, s = t.x[rows], t.y[rows], t.s[rows]
    baseline, _ = fit(x, y, decay)
    kd, penalties = imm.ReverseKD(t.target), imm_penalties(t, rows, config)
    extras = {"reverse-KD": lambda model: kd(model(x), s), **penalties}

    def plain(cases: Tensor) -> Tensor:
        return baseline(t.x[cases])

    def mixture(weight: float) -> Model:
        mix = imm.Interpolation(t.target, weight)
        return lambda cases: mix(plain(cases), t.s[cases])

    def shifted(own_decay: float) -> Model:
        _, logits = fit(x, y, own_decay, offset=t.target(s).log())
        return lambda cases: (logits(t.x[cases]) + t.target(t.s[cases]).log()).log_softmax(-1)

    def weighted(name: str, lam: float) -> Model:
        model, _ = fit(x, y, decay, lambda model: lam * extras[name](model))
        return lambda cases: model(t.x[cases])

    found: dict[str, dict[str, Model]] = {"baseline": {"0": plain}}
    for name in methods:
        if name == "interpolation":
            found[name] = {"0": plain} | {f"{w:g}": mixture(w) for w in config["weights"]}
        elif name == "offset":
            found[name] = {f"{own:g}": shifted(own) for own in config["decays"]}
        else:
            weights = config["lambdas"]
            found[name] = {"0": plain} | {f"{lam:g}": weighted(name, lam) for lam in weights}
    return found


def scores(log_q: Tensor, y: Tensor) -> dict[str, float]:
    """Mean log-loss in nats and accuracy of (N, 2) log-probabilities."""
    return {
        "loss": nll_loss(log_q, y).item(),
        "accuracy": (log_q.argmax(-1) == y).double().mean().item(),
    }
