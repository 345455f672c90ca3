"""Divergences D(P̂ ‖ Q̂) between rows of a target and of an induced model: what an estimator may
match by.

Each is a function (..., Y) target probabilities, (..., Y) log-probabilities -> (...), in nats where
it has a unit. Hand one, or its name, to an estimator as ``divergence=``; the default is the
cross-entropy, forward KL up to the target's entropy, which has the same gradient. All but
:func:`plackett_luce` are 0 at Q̂ = P̂ and positive elsewhere, so that they are consistent on
*induced* models. Where a target rules out what the model allows, reverse KL is infinite: smooth it.

Unchecked, as inner functions: the estimators check what they hand over.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from imm_lib import checks
from imm_lib.induced import cross_entropy

Divergence = Callable[[Tensor, Tensor], Tensor]


def _finite(log_q: Tensor) -> Tensor:
    """log_q with the lowest finite number for -inf, so that 0 times it is 0."""
    return log_q.clamp_min(torch.finfo(log_q.dtype).min)


def _negative_entropy(p: Tensor) -> Tensor:
    return -torch.special.entr(p).sum(-1)


def forward_kl(target: Tensor, log_q: Tensor) -> Tensor:
    """KL(P̂ ‖ Q̂) = Σ P̂ log (P̂ / Q̂), the paper's choice (eq. 5).

    >>> forward_kl(torch.tensor([0.5, 0.5]), torch.tensor([0.5, 0.5]).log())
    tensor(0.)
    """
    return cross_entropy(target, log_q) + _negative_entropy(target)


def reverse_kl(target: Tensor, log_q: Tensor) -> Tensor:
    """KL(Q̂ ‖ P̂) = Σ Q̂ log (Q̂ / P̂); infinite where P̂ is 0 and Q̂ is not.

    >>> round(reverse_kl(torch.tensor([0.5, 0.5]), torch.tensor([0.9, 0.1]).log()).item(), 4)
    0.3681
    """
    q = log_q.exp()
    return (q * _finite(log_q) - torch.xlogy(q, target)).sum(-1)


def jensen_shannon(target: Tensor, log_q: Tensor) -> Tensor:
    """The mean of KL(P̂ ‖ M) and KL(Q̂ ‖ M) with M their mean; at most log 2.

    >>> round(jensen_shannon(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]).log()).item(), 4)
    0.6931
    """
    q = log_q.exp()
    middle = (target + q) / 2
    return (_negative_entropy(target) + (q * _finite(log_q)).sum(-1)) / 2 - _negative_entropy(
        middle
    )


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
        overlap = target.log().mul(order).add(log_q * (1 - order)).exp()
        overlap = overlap.masked_fill((target == 0) & (order > 0), 0.0)
        return (1 - overlap.sum(-1)) / (order * (1 - order))

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
    q = log_q.exp()
    return (target.square().sum(-1).log() + q.square().sum(-1).log()) / 2 - (target * q).sum(
        -1
    ).log()


def balanced(weight: float = 0.5) -> Divergence:
    """weight · KL(P̂ ‖ Q̂) + (1 - weight) · KL(Q̂ ‖ P̂).

    Raises:
        TypeError, ValueError: ``weight`` is not in [0, 1].

    >>> round(balanced(0.5)(torch.tensor([0.5, 0.5]), torch.tensor([0.9, 0.1]).log()).item(), 4)
    0.4394
    """
    weight = checks.number("weight", weight, 0, 1)

    def divergence(target: Tensor, log_q: Tensor) -> Tensor:
        return weight * forward_kl(target, log_q) + (1 - weight) * reverse_kl(target, log_q)

    return divergence


def sinkhorn(cost: Tensor, epsilon: float = 0.1, steps: int = 1000) -> Divergence:
    """The debiased Sinkhorn divergence OT(P̂, Q̂) - (OT(P̂, P̂) + OT(Q̂, Q̂)) / 2 of entropic
    optimal transport.

    It is 0 at Q̂ = P̂ and positive elsewhere if exp(-cost / epsilon) is positive definite, as it is
    for distances on a line and their squares (Feydy and others, 2019); other costs are refused.
    Unlike the other divergences it knows that some labels are nearer to each other than others.
    Solved by POT; value and gradient are those of the dual problem, exact where the iteration has
    converged.

    Args:
        cost: (Y, Y) cost of moving probability from one label to another: not negative, 0 on the
        diagonal, symmetric.
        epsilon: weight of the entropy, in the unit of the cost.
        steps: the most iterations.

    Raises:
        TypeError, ValueError: a cost of another form, or one that is no proper divergence at this
            epsilon; when called, of another number of labels.
        ImportError: POT is not installed.
    """
    if checks.floating("cost", cost).dim() != 2 or cost.shape[0] != cost.shape[1]:
        raise ValueError(f"cost must be (Y, Y), got {checks.describe(cost)}")
    if (
        not torch.isfinite(cost).all()
        or (cost < 0).any()
        or (cost != cost.T).any()
        or (cost.diagonal() != 0).any()
    ):
        raise ValueError(
            "cost must be finite, not negative, symmetric and 0 on the diagonal, got one that is not"
        )
    epsilon, steps = (
        checks.number("epsilon", epsilon, 0, open_low=True),
        checks.count("steps", steps),
    )
    if (smallest := torch.linalg.eigvalsh((-cost.double() / epsilon).exp())[0].item()) < 1e-12:
        raise ValueError(
            "cost must make exp(-cost / epsilon) positive definite, or the divergence is not proper; its smallest "
            f"eigenvalue is {smallest:.2g} with epsilon = {epsilon:g}"
        )
    try:
        from ot.batch import solve_batch
    except ImportError as error:
        raise ImportError("sinkhorn needs POT: pip install 'imm_lib[transport]'") from error

    def transport(a: Tensor, b: Tensor) -> Tensor:
        costs = cost.to(a).expand(len(a), -1, -1)
        found = solve_batch(
            costs, epsilon, a, b, steps, tol=1e-9, method="log_sinkhorn", grad="detach"
        ).potentials
        # at the solution the dual's value is the primal's, and its gradient by a marginal is that
        # side's potential
        u, v = (potential.detach() for potential in found)
        return epsilon * ((a * u).sum(-1) + (b * v).sum(-1))

    def divergence(target: Tensor, log_q: Tensor) -> Tensor:
        if target.shape[-1] != len(cost):
            raise ValueError(
                f"cost must be (Y, Y) with the target's Y = {target.shape[-1]}, got {checks.describe(cost)}"
            )
        tiny = torch.finfo(log_q.dtype).tiny
        target, log_q = torch.broadcast_tensors(target.to(log_q.dtype), log_q)
        p, q = (x.reshape(-1, len(cost)).clamp_min(tiny) for x in (target, log_q.exp()))
        found = transport(p, q) - (transport(p, p) + transport(q, q)) / 2
        return found.view(target.shape[:-1])

    return divergence


def plackett_luce(target: Tensor, log_q: Tensor) -> Tensor:
    """The listwise loss: -log probability of the target's order of the labels under Plackett and
    Luce's model of Q̂.

    It looks at the order alone: not a proper divergence, as its least value is not at Q̂ = P̂.

    >>> round(plackett_luce(torch.tensor([0.6, 0.4]), torch.tensor([0.9, 0.1]).log()).item(), 4)
    0.1054
    """
    target, log_q = torch.broadcast_tensors(target, _finite(log_q))
    ranked = log_q.gather(-1, target.argsort(dim=-1, descending=True, stable=True))
    rest = ranked.flip(-1).logcumsumexp(-1).flip(-1)
    return (rest - ranked).sum(-1)


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

    Raises:
        ValueError: an unknown name; the message lists the known ones.
        TypeError: neither a name nor callable.

    >>> as_divergence("forward KL") is forward_kl
    True
    """
    if isinstance(divergence, str):
        if divergence not in NAMED:
            known = f"{', '.join(NAMED)}, or a function as of alpha(order), balanced(weight) or sinkhorn(cost)"
            raise ValueError(f"divergence must be one of {known}, got {divergence!r}")
        return NAMED[divergence]
    if not callable(divergence):
        raise TypeError(
            f"divergence must be a name or a function of (target, log_q), got {checks.describe(divergence)}"
        )
    return divergence


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
        (found,) = torch.autograd.grad(divergence(target, log_q).sum(), log_q)
    return -found
