"""Divergences D(P̂ ‖ Q̂) between rows of a target and of an induced model: what an estimator may
match by.

Each is a function (..., Y) target probabilities, (..., Y) log-probabilities -> (...), in nats where
it has a unit. Hand one, or its name, to an estimator as ``divergence=``; the default is the
cross-entropy, forward KL up to the target's entropy, which has the same gradient. All but
:func:`plackett_luce` are 0 at Q̂ = P̂ and positive elsewhere, so that they are consistent on
*induced* models. Where a target rules out what the model allows, reverse KL is infinite: smooth it.

A label of probability 0 costs what it costs in the limit, and its gradient is a number, so that a
padded vocabulary does no harm. A Q̂(y) below the least number of the dtype counts as 0 where the
formula multiplies by it.

Unchecked, as inner functions: the estimators check what they hand over.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from imm_lib import checks
from imm_lib.induced import cross_entropy
from imm_lib.sums import log_of_sum
from imm_lib.transport import sinkhorn as sinkhorn

Divergence = Callable[[Tensor, Tensor], Tensor]


def _divided(log_q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Q̂, which labels it leaves out (0, or too small for the dtype), and log Q̂ with 0 for these.

    Behind the 0 no gradient flows: 0 times an infinite logarithm would be NaN.
    """
    q = log_q.exp()
    out = q == 0
    return q, out, log_q.masked_fill(out, 0.0)


def forward_kl(target: Tensor, log_q: Tensor) -> Tensor:
    """KL(P̂ ‖ Q̂) = Σ P̂ log (P̂ / Q̂), the paper's choice (eq. 5).

    >>> forward_kl(torch.tensor([0.5, 0.5]), torch.tensor([0.5, 0.5]).log())
    tensor(0.)
    """
    target, log_q = torch.broadcast_tensors(target, log_q)
    out = target == 0
    log_p = target.masked_fill(out, 1.0).log()
    return (target * (log_p - log_q.masked_fill(out, 0.0))).sum(-1)


def reverse_kl(target: Tensor, log_q: Tensor) -> Tensor:
    """KL(Q̂ ‖ P̂) = Σ Q̂ log (Q̂ / P̂); infinite where P̂ is 0 and Q̂ is not.

    >>> round(reverse_kl(torch.tensor([0.5, 0.5]), torch.tensor([0.9, 0.1]).log()).item(), 4)
    0.3681
    """
    target, log_q = torch.broadcast_tensors(target, log_q)
    _, out, log_q = _divided(log_q)
    each = log_q.exp() * (log_q - target.masked_fill(out, 1.0).log())
    return each.masked_fill(out, 0.0).sum(-1)


def jensen_shannon(target: Tensor, log_q: Tensor) -> Tensor:
    """The mean of KL(P̂ ‖ M) and KL(Q̂ ‖ M) with M their mean; at most log 2.

    >>> round(jensen_shannon(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]).log()).item(), 4)
    0.6931
    """
    target, log_q = torch.broadcast_tensors(target, log_q)
    q, _, log_q = _divided(log_q)
    # one that is next to nothing is none, as its inverse would be infinite
    least = torch.finfo(log_q.dtype).tiny
    both = (target > least) & (q > least)
    alone = (target + q).masked_fill(both, 0.0) * math.log(2)
    p, q = target.masked_fill(~both, 0.5), q.masked_fill(~both, 0.5)
    log_q, log_middle = log_q.masked_fill(~both, math.log(0.5)), ((p + q) / 2).log()
    # near the target the logarithms would cancel, but not log1p of the difference
    share = (p - q) / (p + q)
    near = share.abs() < 0.5
    share = share.masked_fill(~near, 0.0)
    over_p = torch.where(near, share.log1p(), p.log() - log_middle)
    over_q = torch.where(near, (-share).log1p(), log_q - log_middle)
    return (alone + (p * over_p + q * over_q).masked_fill(~both, 0.0)).sum(-1) / 2


def alpha(order: float) -> Divergence:
    """The α-divergence (1 - Σ P̂^α Q̂^(1-α)) / (α (1 - α)): forward KL as α -> 1, reverse KL as α
    -> 0.

    Raises:
        TypeError, ValueError: ``order`` is not a finite number.

    >>> round(alpha(0.5)(torch.tensor([0.5, 0.5]), torch.tensor([0.9, 0.1]).log()).item(), 4)
    0.4223
    """
    order = checks.number("order", order, -math.inf)
    if order == 1:
        return forward_kl
    if order == 0:
        return reverse_kl

    def divergence(target: Tensor, log_q: Tensor) -> Tensor:
        target, log_q = torch.broadcast_tensors(target, log_q)
        q, small, _ = _divided(log_q)
        # labels whose P̂^α Q̂^(1-α) is 0; where it is infinite, the divergence is
        out = small if order < 0 else target == 0
        if 0 < order < 1:
            out = out | (log_q == -math.inf)
        log_p, log_q = target.masked_fill(out, 1.0).log(), log_q.masked_fill(out, 0.0)
        base, log_base, power = (target, log_p, order - 1) if order > 0.5 else (q, log_q, order)
        exponent = power * (log_p - log_q)
        # 1 - exp(x) by expm1 where x is small: near the limits, all of the divergence is there
        near = exponent.abs() < 1
        apart = torch.where(
            near,
            -base * exponent.masked_fill(~near, 0.0).expm1(),
            base - (log_base + exponent).masked_fill(near, 0.0).exp(),
        )
        return torch.where(out, base, apart).sum(-1) / (order * (1 - order))

    return divergence


def total_variation(target: Tensor, log_q: Tensor) -> Tensor:
    """Half the sum of |P̂ - Q̂|; in [0, 1].

    >>> round(total_variation(torch.tensor([0.5, 0.5]), torch.tensor([0.9, 0.1]).log()).item(), 4)
    0.4
    """
    return (target - log_q.exp()).abs().sum(-1) / 2


def squared_hellinger(target: Tensor, log_q: Tensor) -> Tensor:
    """1 - Σ √(P̂ Q̂); in [0, 1].

    >>> round(squared_hellinger(torch.tensor([0.5, 0.5]), torch.tensor([0.9, 0.1]).log()).item(), 4)
    0.1056
    """
    return 1 - (target.sqrt() * (log_q / 2).exp()).sum(-1)


def cauchy_schwarz(target: Tensor, log_q: Tensor) -> Tensor:
    """-log of the cosine between P̂ and Q̂ as vectors.

    >>> round(cauchy_schwarz(torch.tensor([0.5, 0.5]), torch.tensor([0.9, 0.1]).log()).item(), 4)
    0.2473
    """
    target, log_q = torch.broadcast_tensors(target, log_q)
    q, out = log_q.exp(), target == 0
    joint = target.masked_fill(out, 1.0).log() + log_q.masked_fill(out, 0.0)
    joint = joint.masked_fill(out, -math.inf)
    top = joint.detach().amax(-1, keepdim=True).clamp_min(torch.finfo(log_q.dtype).min)
    # products of e^-120 are no numbers in float32; those of ordinary size are best as they are
    far = top < -40
    product = torch.where(far, (joint - top).exp(), target * q).sum(-1)
    product = log_of_sum(product) + top.masked_fill(~far, 0.0).squeeze(-1)
    norms = target.square().sum(-1).log() + q.square().sum(-1).log()
    return norms / 2 - product


def balanced(weight: float = 0.5) -> Divergence:
    """weight · KL(P̂ ‖ Q̂) + (1 - weight) · KL(Q̂ ‖ P̂).

    Raises:
        TypeError, ValueError: ``weight`` is not in [0, 1].

    >>> round(balanced(0.5)(torch.tensor([0.5, 0.5]), torch.tensor([0.9, 0.1]).log()).item(), 4)
    0.4394
    """
    weight = checks.number("weight", weight, 0, 1)
    if weight in (0, 1):  # 0 times an infinite divergence would be NaN
        return forward_kl if weight else reverse_kl

    def divergence(target: Tensor, log_q: Tensor) -> Tensor:
        return weight * forward_kl(target, log_q) + (1 - weight) * reverse_kl(target, log_q)

    return divergence


def plackett_luce(target: Tensor, log_q: Tensor) -> Tensor:
    """The listwise loss: -log probability of the target's order of the labels under Plackett and
    Luce's model of Q̂.

    It looks at the order alone: not a proper divergence, as its least value is not at Q̂ = P̂.
    Each label is chosen from itself and all that the target ranks below it; labels whose
    probabilities are equal up to rounding are not compared. So a target that is 0 but for its first
    k labels asks for the order of these alone.

    >>> round(plackett_luce(torch.tensor([0.6, 0.4]), torch.tensor([0.9, 0.1]).log()).item(), 4)
    0.1054
    """
    target, log_q = torch.broadcast_tensors(target, log_q)
    target, order = target.sort(dim=-1, descending=True, stable=True)
    # a finite stand-in for -inf, low enough to count for nothing beside any other
    floor = torch.finfo(log_q.dtype).min / 4
    ranked = log_q.clamp_min(floor).gather(-1, order)
    rest = ranked.flip(-1).logcumsumexp(-1).flip(-1)
    # where the next lower probability begins; no label is below the last group
    falls = target[..., :-1] > target[..., 1:] * (1 + 8 * torch.finfo(target.dtype).eps)
    places = torch.arange(1, target.shape[-1], device=target.device)
    last = target.shape[-1]
    below = torch.where(falls, places, last).flip(-1).cummin(-1).values.flip(-1)
    below = torch.nn.functional.pad(below, (0, 1), value=last)
    compared = below < last
    lower = rest.gather(-1, below.clamp_max(last - 1))
    # log (q + lower) - log q; where both are 0, neither label can be preferred
    compared &= (ranked > floor) | (lower > floor / 2)
    ranked = ranked.masked_fill(ranked == floor, -math.inf)
    return torch.nn.functional.softplus((lower - ranked).masked_fill(~compared, -math.inf)).sum(-1)


NAMED: dict[str, Divergence] = {
    "cross-entropy": cross_entropy,
    "forward KL": forward_kl,
    "reverse KL": reverse_kl,
    "Jensen-Shannon": jensen_shannon,
    "alpha 0.5": alpha(0.5),
    "total variation": total_variation,
    "squared Hellinger": squared_hellinger,
    "Cauchy-Schwarz": cauchy_schwarz,
    "balanced": balanced(0.5),
    "Plackett-Luce": plackett_luce,
}
"""Those that need no further argument, by name.

:meta hide-value:
"""


def as_divergence(divergence: Divergence | str) -> Divergence:
    """A divergence, or the one of that name.

    A function from outside this module has its answers checked, one value per row.

    Raises:
        ValueError: an unknown name; the message lists the known ones.
        TypeError: neither a name nor callable.

    >>> as_divergence("forward KL") is forward_kl
    True
    """
    if isinstance(divergence, str):
        if divergence not in NAMED:
            raise ValueError(
                f"divergence must be one of {', '.join(NAMED)}, or a function as of alpha(order), "
                f"balanced(weight) or sinkhorn(cost), got {divergence!r}"
            )
        return NAMED[divergence]
    if not callable(divergence):
        raise TypeError(
            "divergence must be a name or a function of (target, log_q), got "
            f"{checks.describe(divergence)}"
        )
    own = (getattr(divergence, "__module__", None) or "").startswith("imm_lib.")
    return divergence if own else partial(_checked, divergence)


def _checked(divergence: Divergence, target: Tensor, log_q: Tensor) -> Tensor:
    """The answer of a function from outside: a mean in the place of one value per row would pass
    for a risk.
    """
    name, rows = "divergence(target, log_q)", torch.broadcast_shapes(target.shape, log_q.shape)[:-1]
    found = checks.floating(name, divergence(target, log_q))
    return checks.shaped(name, found, *rows, why=", one value per row")


def pull(divergence: Divergence, target: Tensor, log_q: Tensor) -> Tensor:
    """-∂D/∂log Q̂, (..., Y), without a graph: how strongly each label's log-probability is pulled
    up.

    It is all that an estimator's backward pass needs to know of a divergence: times the crosstalk,
    it is minus the derivative by the log-probabilities of one extended context (Appendix C.2). That
    of the cross-entropy is the target.

    >>> pull(reverse_kl, torch.tensor([0.5, 0.5]), torch.tensor([0.9, 0.1]).log())
    tensor([-1.4290,  0.0609])
    """
    if divergence is cross_entropy:
        return target
    with torch.enable_grad():
        log_q = log_q.detach().requires_grad_()
        value = divergence(target, log_q).sum()
        if not value.requires_grad:
            raise ValueError("divergence(target, log_q) must depend on log_q, got a constant")
        (found,) = torch.autograd.grad(value, log_q)
    return -found
