"""The closed-form gradients of noising and IMM for logistic regression: the fast twin of
``imm_lib``'s estimators.

The model's logit of short context x1 and extended context (x2, x3) is short + extended, where
``short`` = w1 x1 and ``extended`` = w2 x2 + w3 x3 + b. A *term* maps both, (n, R) each, and the
number of the step to the derivatives of its
risk by both: whatever the estimator, a gradient by the weights follows from two (n, R) tensors. All
risks are means over the n data points, in nats.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from imm_lib import checks
from imm_lib.experiments.logistic.problem import Data

Term = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]


def kernel(data: Data, bandwidth: float = 1.0) -> Tensor:
    """(n, n, R) weights of extended context t' for the short context of point t, [t, t', run] (eqs.
    21, 22).
    """
    bandwidth = checks.number("bandwidth", bandwidth, 0, open_low=True)
    distance = (data.short.unsqueeze(1) - data.short.unsqueeze(0)).abs()
    return torch.softmax(-distance / bandwidth, dim=1)


def _slope(target: Tensor, induced: Tensor) -> Tensor:
    """The derivative of H(target, induced) by the induced probability of label 1."""
    tiny = torch.finfo(induced.dtype).eps
    induced = induced.clamp(tiny, 1 - tiny)
    return (1 - target) / (1 - induced) - target / induced


class _Grid:
    """Q(1 | x1 of t, (x2, x3) of t') for all pairs, (n, n, R), into one buffer.

    The logistic function of a sum needs n exponentials of each side and not n² of the sums.
    """

    def __init__(self, weight: Tensor):
        self.weight = weight
        self.q, self.part = torch.empty_like(weight), torch.empty_like(weight)
        # far outside, the product of two exponentials could be 0 times inf
        self.limit = 0.98 * math.log(torch.finfo(weight.dtype).max)

    def shares(self, short: Tensor, extended: Tensor) -> tuple[Tensor, Tensor]:
        """weight x Q, and Q; both are overwritten by the next call."""
        left, right = (x.clamp(-self.limit, self.limit).neg_().exp_() for x in (short, extended))
        torch.mul(left.unsqueeze(1), right.unsqueeze(0), out=self.q)
        self.q.add_(1).reciprocal_()
        return torch.mul(self.weight, self.q, out=self.part), self.q

    def induced(self, short: Tensor, extended: Tensor) -> Tensor:
        """(n, R) the induced model's probability of label 1."""
        return self.shares(short, extended)[0].sum(1)


def noising(data: Data) -> Term:
    """Noising: every extended context against the target by itself (eq. 14)."""
    weight, n = kernel(data), len(data.short)
    grid = _Grid(weight)
    expected = (weight * data.target.unsqueeze(1)).sum(0)

    def term(short: Tensor, extended: Tensor, step: int) -> tuple[Tensor, Tensor]:
        share, _ = grid.shares(short, extended)
        return (share.sum(1) - data.target) / n, (share.sum(0) - expected) / n

    return term


def noising_redrawn(data: Data, generator: torch.Generator | None = None) -> Term:
    """Noising with hard labels: each step draws one label per short context from the target, for
    every extended context alike. :func:`noising` is its mean over the draws.
    """
    weight, n = kernel(data), len(data.short)
    generator = checks.generator(generator)
    grid = _Grid(weight)

    def term(short: Tensor, extended: Tensor, step: int) -> tuple[Tensor, Tensor]:
        drawn = torch.rand(data.target.shape, generator=generator).to(weight.device)
        label = (drawn < data.target).to(weight.dtype)
        share, _ = grid.shares(short, extended)
        expected = torch.einsum("ter,tr->er", weight, label)
        return (share.sum(1) - label) / n, (share.sum(0) - expected) / n

    return term


def reverse_kd(data: Data) -> Term:
    """Reverse distillation: the target against the model at its own data points (eq. 1)."""
    n = len(data.short)

    def term(short: Tensor, extended: Tensor, step: int) -> tuple[Tensor, Tensor]:
        slope = (torch.sigmoid(short + extended) - data.target) / n
        return slope, slope

    return term


def exact(data: Data, bandwidth: float = 1.0) -> Term:
    """The IMM risk with all n extended contexts of every short one (eqs. 22, 23)."""
    grid, n = _Grid(kernel(data, bandwidth)), len(data.short)

    def term(short: Tensor, extended: Tensor, step: int) -> tuple[Tensor, Tensor]:
        share, q = grid.shares(short, extended)
        slope = _slope(data.target, share.sum(1)) / n
        share.addcmul_(share, q, value=-1).mul_(slope.unsqueeze(1))
        return share.sum(1), share.sum(0)

    return term


class Drawn:
    """A term in k drawn contexts a point.

    Args:
        draw: () -> (n, k, R) extended contexts.
        by_logit: (n, k, R) probabilities of label 1 there -> the derivatives of each point's own
            risk by the logits.
    """

    def __init__(self, draw: Callable[[], Tensor], by_logit: Callable[[Tensor], Tensor]):
        self.draw, self.by_logit = draw, by_logit

    def pairs(self, short: Tensor, extended: Tensor) -> tuple[Tensor, Tensor]:
        """The contexts of a new draw and the derivatives there, (n, k, R) each."""
        place = self.draw()
        rest = extended.gather(0, place.flatten(0, 1)).view(place.shape)
        return place, self.by_logit(torch.sigmoid(short.unsqueeze(1) + rest))

    def __call__(self, short: Tensor, extended: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """The derivatives of the mean risk by both parts of the logits."""
        place, gradient = self.pairs(short, extended)
        gradient = gradient / len(short)
        column = torch.zeros_like(extended)
        column.scatter_add_(0, place.flatten(0, 1), gradient.flatten(0, 1))
        return gradient.sum(1), column


def drawer(weight: Tensor, k: int, generator: torch.Generator | None) -> Callable[[], Tensor]:
    """Draws (n, k, R) extended contexts from the kernel, with replacement, by numbers of the
    CPU.
    """
    n, _, runs = weight.shape
    cumulative = weight.double().cumsum(1).transpose(1, 2).contiguous()

    def draw() -> Tensor:
        u = torch.rand(n, runs, k, dtype=torch.float64, generator=generator).to(weight.device)
        # rounding may leave the last sum below 1, and a draw behind it
        return torch.searchsorted(cumulative, u, right=True).clamp_(max=n - 1).transpose(1, 2)

    return draw


def sampled(data: Data, k: int = 10, generator: torch.Generator | None = None) -> Drawn:
    """The IMM risk with k extended contexts that follow the kernel, drawn anew in every step
    (Algorithm 1); raises TypeError or ValueError unless k is an int of at least 1.
    """
    share = 1 / checks.count("k", k)

    def by_logit(q: Tensor) -> Tensor:
        return _slope(data.target, (share * q).sum(1)).unsqueeze(1) * share * q * (1 - q)

    return Drawn(drawer(kernel(data), k, checks.generator(generator)), by_logit)


def moving_average(
    data: Data, momentum: float = 0.1, generator: torch.Generator | None = None
) -> Drawn:
    """Moving-average IMM: one extended context per point and step, drawn from the kernel, feeds a
    running table of Q̂.

    The correction is the current Q over that table, at the drawn context.
    """
    momentum = checks.number("momentum", momentum, 0, 1, open_low=True)
    table: Tensor | None = None

    def by_logit(q: Tensor) -> Tensor:
        nonlocal table
        table = q if table is None else torch.lerp(table, q, momentum)
        return _slope(data.target.unsqueeze(1), table) * q * (1 - q)

    return Drawn(drawer(kernel(data), 1, checks.generator(generator)), by_logit)


def serialized(data: Data, period: int = 10) -> Term:
    """Serialized IMM: data points' own contexts, with the ratio Q†/Q̂† of the last refresh (eq. 13,
    Algorithm 2).
    """
    grid, n = _Grid(kernel(data)), len(data.short)
    checks.count("period", period)
    one = zero = data.target

    def term(short: Tensor, extended: Tensor, step: int) -> tuple[Tensor, Tensor]:
        nonlocal one, zero
        q = torch.sigmoid(short + extended)
        if step % period == 0:
            induced = grid.induced(short, extended)
            tiny = torch.finfo(q.dtype).eps
            one = data.target * q / induced.clamp(min=tiny) / n
            zero = (1 - data.target) * (1 - q) / (1 - induced).clamp(min=tiny) / n
        slope = zero * q - one * (1 - q)
        return slope, slope

    return term


def stale_table(data: Data, period: int = 10, momentum: float = 1.0) -> Term:
    """The current Q over a table of Q̂ that every ``period`` steps moves by ``momentum`` towards
    the exact one.

    With momentum 1 the cautionary tale: between two refreshes it follows a minoriser of the risk.
    """
    grid, n = _Grid(kernel(data)), len(data.short)
    checks.count("period", period)
    momentum = checks.number("momentum", momentum, 0, 1, open_low=True)
    table: Tensor | None = None

    def term(short: Tensor, extended: Tensor, step: int) -> tuple[Tensor, Tensor]:
        nonlocal table
        if table is None:
            table = grid.induced(short, extended)
        elif step % period == 0:
            table = torch.lerp(table, grid.induced(short, extended), momentum)
        q = torch.sigmoid(short + extended)
        slope = _slope(data.target, table) * q * (1 - q) / n
        return slope, slope

    return term
