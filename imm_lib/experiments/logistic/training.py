"""One batched training program: full-batch gradient descent of all Monte-Carlo runs as one
tensor.
"""

from collections.abc import Iterator, Sequence
from inspect import signature
from itertools import count, islice
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from imm_lib import checks
from imm_lib.experiments.logistic import terms
from imm_lib.experiments.logistic.problem import Data
from imm_lib.experiments.options import one_of
from imm_lib.induced import imm_risk

METHODS = {
    "baseline": None,
    "noising": terms.noising,
    "noising, hard labels": terms.noising_redrawn,
    "reverse-KD": terms.reverse_kd,
    "IMM exact": terms.exact,
    "IMM sampled": terms.sampled,
    "IMM serialized": terms.serialized,
    "IMM moving average": terms.moving_average,
    "stale table": terms.stale_table,
}
"""What can be trained. Interpolation is the baseline, mixed with the target at prediction time."""


def ratio(lam: float) -> float:
    """ρ = λ / (1 + λ).

    Raises:
        TypeError, ValueError: λ is not a finite number of at least 0.
    """
    return checks.number("lam", lam, 0) / (1 + lam)


def _ratios(rho: float | Tensor, data: Data) -> Tensor:
    """(R,) ρ, checked."""
    if not isinstance(rho, Tensor):
        rho = torch.tensor(checks.number("rho", rho, 0, 1), dtype=torch.float64)
    if rho.shape not in (torch.Size([]), data.short.shape[1:]):
        raise ValueError(
            f"rho must be a number or ({data.short.shape[1]},), got {checks.describe(rho)}"
        )
    if not ((rho >= 0) & (rho <= 1)).all():
        raise ValueError(f"rho must be in [0, 1], got {rho.min().item():g}..{rho.max().item():g}")
    return rho.to(data.short).expand(data.short.shape[1])


def descend(
    data: Data, method: str, rho: float | Tensor = 0.0, *, lr: float = 1.0, **options: Any
) -> Iterator[Tensor]:
    """The weights after each step of :func:`train`, without end: (4, R), one tensor that every step
    overwrites.
    """
    one_of("method", method, METHODS)
    rho, lr = _ratios(rho, data), checks.number("lr", lr, 0, open_low=True)
    n, runs = data.short.shape
    term = _build(method, data, options)
    primary = (1 - rho if term else torch.ones_like(rho)) / n
    weights = data.short.new_zeros(4, runs)
    x2, x3 = data.extended
    for step in count():
        short = weights[0] * data.short
        extended = torch.addcmul(weights[3] + weights[1] * x2, weights[2], x3)
        row = column = torch.sigmoid(short + extended).sub_(data.label).mul_(primary)
        if term is not None:
            by_short, by_extended = term(short, extended, step)
            row, column = torch.addcmul(row, rho, by_short), torch.addcmul(column, rho, by_extended)
        weights.sub_(_by_weights(data, row, column), alpha=lr)
        yield weights


def train(
    data: Data, method: str, rho: float | Tensor = 0.0, *, steps: int = 3000, **settings: Any
) -> Tensor:
    """Minimise (1 - ρ) · cross-entropy + ρ · term from zero weights by full-batch gradient descent
    (eq. 24).

    Args:
        data: n points in each of R runs.
        method: one of ``METHODS``.
        rho: ρ = λ / (1 + λ) in [0, 1], one number or (R,); the baseline has no use for it.
        steps: of gradient descent.
        settings: ``lr``, the learning rate, 1 by default, and the options of the method's term:
            ``bandwidth`` of exact IMM's Laplace kernel, 1 / α, 1 by default; ``k``, ``period``,
            ``momentum``, ``generator``.

    Returns:
        (4, R) weights w1, w2, w3 and bias.

    Raises:
        TypeError, ValueError: an unknown method or option, or a number out of range.
        FloatingPointError: the weights are not finite at the end.
    """
    checks.count("steps", steps)
    return next(weights for _, weights in along(data, method, rho, [steps], **settings))


def along(
    data: Data, method: str, rho: float | Tensor, steps: Sequence[int], **settings: Any
) -> Iterator[tuple[int, Tensor]]:
    """What :func:`train` returns after each of increasing numbers of steps, with that number; every
    step overwrites the weights.
    """
    for step, weights in enumerate(islice(descend(data, method, rho, **settings), max(steps)), 1):
        if step in steps:
            if not torch.isfinite(weights).all():
                raise FloatingPointError(
                    f"{method} left {(~torch.isfinite(weights)).sum()} weights not finite: lower lr"
                )
            yield step, weights


def objective(data: Data, weights: Tensor, rho: float | Tensor) -> Tensor:
    """(R,) the objective of exact IMM at (4, R) weights, (1 - ρ) · cross-entropy + ρ · IMM risk, in
    nats.
    """
    rho = _ratios(rho, data)
    short, extended = logits(data, weights)
    signs = torch.stack([-torch.ones_like(short), torch.ones_like(short)], -1)  # labels 0 and 1
    log_q = logsigmoid(signs * (short + extended).unsqueeze(-1))
    primary = -torch.where(data.label == 1, log_q[..., 1], log_q[..., 0]).mean(0)
    pairs = logsigmoid(
        signs.unsqueeze(1) * (short.unsqueeze(1) + extended.unsqueeze(0)).unsqueeze(-1)
    )  # (n, n, R, 2)
    target = torch.stack([1 - data.target, data.target], -1)
    log_w = terms.kernel(data).transpose(1, 2).log()
    return (1 - rho) * primary + rho * imm_risk(target, pairs.transpose(1, 2), log_w).mean(0)


def gradient(data: Data, weights: Tensor, term: terms.Term, step: int = 0) -> Tensor:
    """(4, R) the derivative of a term's risk by the weights, as ``train`` takes it."""
    return _by_weights(data, *term(*logits(data, weights), step))


def logits(data: Data, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The two parts of the data's logits at (4, R) weights, (n, R) each."""
    x2, x3 = data.extended
    return weights[0] * data.short, weights[1] * x2 + weights[2] * x3 + weights[3]


def _by_weights(data: Data, row: Tensor, column: Tensor) -> Tensor:
    """(4, R) the derivative by the weights from those by the two parts of the logits, (n, R)
    each.
    """
    x2, x3 = data.extended
    return torch.stack(
        [(row * data.short).sum(0), (column * x2).sum(0), (column * x3).sum(0), column.sum(0)]
    )


def _build(method: str, data: Data, options: dict) -> terms.Term | None:
    build = METHODS[method]
    known = list(signature(build).parameters)[1:] if build else []
    if unknown := [name for name in options if name not in known]:
        raise TypeError(
            f"method {method!r} has the options {', '.join(known) or 'none'}, got "
            f"{', '.join(unknown)}"
        )
    return build(data, **options) if build else None
