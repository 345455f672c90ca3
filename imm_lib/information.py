"""Fisher informations of a full model and of its induced model, by automatic differentiation."""

from collections.abc import Iterable

import torch
from torch import Tensor

from imm_lib import checks, distributions
from imm_lib.checks import accumulator
from imm_lib.contexts import Contexts
from imm_lib.estimators import Query, answer, checked_batch, checked_contexts
from imm_lib.segments import unique
from imm_lib.sums import segment_logsumexp


def jacobian(outputs: Tensor, parameters: list[Tensor], rows: int = 256) -> Tensor:
    """(N, Y) outputs -> (N, Y, d) derivatives by all parameters, in float64."""
    found = []
    for part in torch.eye(outputs.numel(), dtype=outputs.dtype, device=outputs.device).split(rows):
        grads = torch.autograd.grad(
            outputs.reshape(-1),
            parameters,
            part,
            retain_graph=True,
            is_grads_batched=True,
            allow_unused=True,
        )
        flat = [
            part.new_zeros(len(part), p.numel()) if g is None else g.reshape(len(part), -1)
            for g, p in zip(grads, parameters, strict=True)
        ]
        found.append(torch.cat(flat, 1).double())
    return torch.cat(found).view(*outputs.shape, -1)


def information(weight: Tensor, probability: Tensor, score: Tensor) -> Tensor:
    """Σ_t w_t Σ_y p_t(y) ∇ ∇ᵀ; (N,), (N, Y), (N, Y, d) -> (d, d)."""
    return torch.einsum("n,ny,nyi,nyj->ij", weight, probability, score, score)


def damped(full: Tensor, damping: float) -> tuple[Tensor, Tensor, Tensor]:
    """A (d, d) information with ``damping`` times the mean of its diagonal added to it, and its
    eigenvalues and vectors. Raises ValueError for a negative damping, or what is singular still.
    """
    added = checks.number("damping", damping, 0) * full.diagonal().mean()
    full = full + added * torch.eye(len(full), dtype=full.dtype, device=full.device)
    values, vectors = torch.linalg.eigh(full)
    if values[0] <= 1e-10 * values[-1]:
        raise ValueError(
            "full must be invertible, got a Fisher information with eigenvalues from "
            f"{values[0]:.3g} to {values[-1]:.3g}: the data do not determine every parameter "
            "(those of a softmax never are); use fewer, more data, or damping > 0, say 0.001"
        )
    return full, values, vectors


def scored(query: Query, short: Tensor, extended: Tensor) -> Tensor:
    """As :func:`imm_lib.estimators.answer`, of any labels, looked at closely; raises ValueError for
    one that no parameter moves.
    """
    log_q = answer(query, short, extended)
    if not torch.allclose(log_q.detach().exp().sum(1), log_q.new_ones(()), atol=1e-3):
        raise ValueError(
            "query(short, extended) must be log-probabilities that sum to 1 over labels: use "
            "log_softmax"
        )
    if not log_q.requires_grad:
        raise ValueError(
            "query(short, extended) must depend on parameters, got an answer without a gradient"
        )
    return accumulator(log_q)


def informations(
    query: Query,
    parameters: Iterable[Tensor],
    contexts: Contexts,
    short: Tensor,
    extended: Tensor,
    weight: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The matrices I, J and K of a model on a sample, by automatic differentiation; (d, d) float64
    each.

    I = E Σ_y Q ∇log Q ∇log Qᵀ; J the same of Q̂ with the gradients of log Q̂; K = E g gᵀ, where g
    is the influence of one data point, as an extended context, on the IMM gradient: g(s,e) = Σ_y
    Q(y|s,e) ∇log Q̂(y|s), summed over the short contexts that a kernel lends the point to. With
    discrete short contexts K never exceeds J. J and K do not exceed I if ``query`` takes an
    extended context as the sample has it, with its own short context.

    Args:
        query: (N,) short contexts, (N,) extended contexts -> (N, Y) log-probabilities of the full
            model, in evaluation mode: dropout would make every call another.
        parameters: what the model is differentiated by; d numbers in all, of which a few hundred
            are practical.
        contexts: one of the context classes.
        short: (N,) or (N, c) short contexts of a sample.
        extended: (N,) its extended contexts, as the contexts name them: of data points, their
            numbers.
        weight: (N,) weights of its points that sum to 1; equal by default.

    Raises:
        TypeError, ValueError: shapes that do not fit, weights that are not a distribution, no
            parameters, or answers of ``query`` that are no log-probabilities or do not depend on
            them.
    """
    parameters = checks.differentiable(parameters)
    contexts = checked_contexts(contexts)
    short = checks.held("short", checked_batch(short))
    extended = checks.held("extended", checks.ids("extended", extended))
    checks.shaped("extended", extended, len(short))
    checks.double("short", short)  # before anything is computed
    if weight is None:
        weight = torch.full((len(short),), 1 / len(short), dtype=torch.float64, device=short.device)
    weight = distributions.normalised(
        distributions.probabilities("weight", weight, len(short)).double()
    )

    log_q = scored(query, short, extended)
    q = log_q.detach().double().exp()
    distinct, inverse, _ = unique(short)
    row, support, log_w = contexts.support(distinct)
    log_all = scored(query, distinct[row], support)
    log_induced = segment_logsumexp(
        log_all + log_w.to(log_all.dtype).unsqueeze(1), row, len(distinct)
    )
    score = jacobian(log_induced, parameters)
    mass = weight.new_zeros(len(distinct)).index_add_(0, inverse, weight)
    points = getattr(contexts, "points", None)
    if points is None:  # a hidden state is drawn anew with every short context
        influence, share = torch.einsum("ny,nyi->ni", q, score[inverse]), weight
    else:
        each = torch.einsum("ny,nyi->ni", log_all.detach().double().exp(), score[row])
        lent = points * (mass[row] * log_w.double().exp()).unsqueeze(1) * each
        influence = each.new_zeros(points, each.shape[1]).index_add_(0, support, lent)
        share = weight.new_full((points,), 1 / points)
    return (
        information(weight, q, jacobian(log_q, parameters)),
        information(mass, log_induced.detach().double().exp(), score),
        torch.einsum("n,ni,nj->ij", share, influence, influence),
    )
