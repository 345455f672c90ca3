"""Optimal transport between rows of a target and of an induced model: the divergence that knows
which labels are near to each other. The only one that needs a further library.
"""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from imm_lib import checks

MISSED = 1e-3
"""How far a transport plan may miss a marginal without a warning: sum of absolute differences."""


def sinkhorn(
    cost: Tensor, epsilon: float = 0.1, steps: int = 1000
) -> Callable[[Tensor, Tensor], Tensor]:
    """The debiased Sinkhorn divergence OT(P̂, Q̂) - (OT(P̂, P̂) + OT(Q̂, Q̂)) / 2 of entropic
    optimal transport.

    It is 0 at Q̂ = P̂ and positive elsewhere if exp(-cost / epsilon) is positive definite, as it is
    for distances on a line and their squares (Feydy and others, 2019); other costs are refused.
    Unlike the other divergences it knows that some labels are nearer to each other than others.
    Solved by POT; value and gradient are those of the dual problem, exact where the iteration has
    converged. Where it has not, a warning says by how much the plan misses its marginals.

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
    checks.floating("cost", cost, "Y", "Y")
    if (
        not checks.held("cost", cost).isfinite().all()
        or (cost < 0).any()
        or (cost != cost.T).any()
        or (cost.diagonal() != 0).any()
    ):
        raise ValueError(
            "cost must be finite, not negative, symmetric and 0 on the diagonal, got one that is "
            "not"
        )
    epsilon = checks.number("epsilon", epsilon, 0, open_low=True)
    steps = checks.count("steps", steps)
    if (smallest := torch.linalg.eigvalsh((-cost.double() / epsilon).exp())[0].item()) < 1e-12:
        raise ValueError(
            "cost must make exp(-cost / epsilon) positive definite, or the divergence is not "
            f"proper; its smallest eigenvalue is {smallest:.2g} with epsilon = {epsilon:g}"
        )
    try:
        from ot.batch import solve_batch
    except ImportError as error:
        raise ImportError("sinkhorn needs POT: pip install 'imm_lib[transport]'") from error

    def transport(a: Tensor, b: Tensor) -> Tensor:
        costs = cost.to(a).expand(len(a), -1, -1)
        found = solve_batch(
            costs, epsilon, a, b, steps, tol=1e-9, method="log_sinkhorn", grad="detach"
        )
        missed = (found.plan.detach().sum(2) - a.detach()).abs().sum(1).amax().item()
        if not missed <= MISSED:
            warnings.warn(
                f"sinkhorn has not converged in {steps} steps: a marginal of its plan is off by "
                f"{missed:.2g} (sum of absolute differences); give more steps or a larger epsilon",
                RuntimeWarning,
                stacklevel=3,
            )
        # at the solution the dual's value is the primal's, and its gradient by a marginal is that
        # side's potential
        u, v = (potential.detach() for potential in found.potentials)
        return epsilon * ((a * u).sum(-1) + (b * v).sum(-1))

    def divergence(target: Tensor, log_q: Tensor) -> Tensor:
        labels = target.shape[-1]
        checks.shaped("cost", cost, labels, labels, why=", with the target's labels")
        tiny = torch.finfo(log_q.dtype).tiny
        target, log_q = torch.broadcast_tensors(target.to(log_q.dtype), log_q)
        p, q = (x.reshape(-1, len(cost)).clamp_min(tiny) for x in (target, log_q.exp()))
        found = transport(p, q) - (transport(p, p) + transport(q, q)) / 2
        return found.view(target.shape[:-1])

    return divergence
