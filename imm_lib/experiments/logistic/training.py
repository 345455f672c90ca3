"""One batched training program: full-batch gradient descent of all Monte-Carlo runs as one tensor."""

import torch
from torch import Tensor

from imm_lib import checks
from imm_lib.experiments.logistic import terms
from imm_lib.experiments.logistic.problem import Data

METHODS = {
    "baseline": None,
    "noising": terms.noising,
    "reverse-KD": terms.reverse_kd,
    "IMM exact": terms.exact,
    "IMM sampled": terms.sampled,
    "IMM serialized": terms.serialized,
    "IMM moving average": terms.moving_average,
    "stale table": terms.stale_table,
}
"""What can be trained. Interpolation is the baseline, mixed with the target at prediction time."""


def schedule(n: int) -> float:
    """The paper's ratio ρ = λ / (1 + λ) at n data points, ρ = 0.818 - 0.0111 n (Appendix D.1.1), at least 0."""
    return max(0.0, 0.818 - 0.0111 * checks.count("n", n))


def ratio(lam: float) -> float:
    """ρ = λ / (1 + λ).

    Raises:
        TypeError, ValueError: λ is not a finite number of at least 0.
    """
    return checks.number("lam", lam, 0) / (1 + lam)


def _ratios(rho: float | Tensor, data: Data) -> Tensor:
    """(R,) ρ, checked."""
    if not isinstance(rho, Tensor):
        rho = torch.tensor(checks.number("rho", rho, 0, 1))
    if rho.shape not in (torch.Size([]), data.short.shape[1:]):
        raise ValueError(f"rho must be a number or ({data.short.shape[1]},), got {checks.describe(rho)}")
    if not ((rho >= 0) & (rho <= 1)).all():
        raise ValueError(f"rho must be in [0, 1], got {rho.min().item():g}..{rho.max().item():g}")
    return rho.to(data.short).expand(data.short.shape[1])


def train(
    data: Data,
    method: str,
    rho: float | Tensor = 0.0,
    *,
    steps: int = 3000,
    lr: float = 1.0,
    bandwidth: float = 1.0,
    **options: object,
) -> Tensor:
    """Minimise (1 - ρ) · cross-entropy + ρ · term from zero weights by full-batch gradient descent (eq. 24).

    Args:
        data: n points in each of R runs.
        method: one of ``METHODS``.
        rho: ρ = λ / (1 + λ) in [0, 1], one number or (R,); the baseline has no use for it.
        steps: of gradient descent.
        lr: learning rate.
        bandwidth: of the Laplace kernel, 1 / α.
        options: of the method's term: ``k``, ``replacement``, ``period``, ``momentum``, ``generator``.

    Returns:
        (4, R) weights w1, w2, w3 and bias.

    Raises:
        TypeError, ValueError: an unknown method or option, or a number out of range.
        FloatingPointError: the weights are not finite at the end.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    rho, lr = _ratios(rho, data), checks.number("lr", lr, 0, open_low=True)
    n, runs = data.short.shape
    if METHODS[method] is None:
        rho, term = torch.zeros_like(rho), None
        if options:
            raise TypeError(f"method {method!r} has no options, got {', '.join(options)}")
    else:
        term = _build(method, data, terms.kernel(data, bandwidth), options)
    primary = (1 - rho) / n
    weights = data.short.new_zeros(4, runs)
    x2, x3 = data.extended
    for step in range(checks.count("steps", steps)):
        short = weights[0] * data.short
        extended = torch.addcmul(weights[3] + weights[1] * x2, weights[2], x3)
        row = column = torch.sigmoid(short + extended).sub_(data.label).mul_(primary)
        if term is not None:
            by_short, by_extended = term(short, extended, step)
            row, column = torch.addcmul(row, rho, by_short), torch.addcmul(column, rho, by_extended)
        parts = [(row * data.short).sum(0), (column * x2).sum(0), (column * x3).sum(0), column.sum(0)]
        weights.sub_(torch.stack(parts), alpha=lr)
    if not torch.isfinite(weights).all():
        raise FloatingPointError(
            f"{method} with lr = {lr:g} left {(~torch.isfinite(weights)).sum()} weights not finite"
        )
    return weights


def _build(method: str, data: Data, weight: Tensor, options: dict) -> terms.Term:
    known = METHODS[method].__code__.co_varnames[2 : METHODS[method].__code__.co_argcount]
    if unknown := [name for name in options if name not in known]:
        raise TypeError(f"method {method!r} has the options {', '.join(known) or 'none'}, got {', '.join(unknown)}")
    return METHODS[method](data, weight, **options)


def gradient(data: Data, weights: Tensor, term: terms.Term, step: int = 0) -> Tensor:
    """(4, R) the derivative of a term's risk by the weights, as ``train`` takes it."""
    x2, x3 = data.extended
    row, column = term(weights[0] * data.short, weights[1] * x2 + weights[2] * x3 + weights[3], step)
    return torch.stack([(row * data.short).sum(0), (column * x2).sum(0), (column * x3).sum(0), column.sum(0)])
