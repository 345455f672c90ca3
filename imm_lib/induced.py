"""The induced model and its risk: pure functions of log-probabilities, in nats, with no hidden
reduction.

Throughout, k counts extended contexts of one short context and Y counts labels. Half-precision
inputs are accumulated in float32. Shapes are always checked; values only on CPU tensors, so that a
GPU never waits for a check.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from imm_lib import checks, distributions
from imm_lib.checks import accumulator
from imm_lib.sums import log_sum_exp_


def fits(name: str, value: Tensor, leading: torch.Size, other_name: str, other: Tensor) -> None:
    """Raise ValueError unless the leading dimensions of ``value`` fit those of the (..., k, Y)
    ``other``, and it is not empty.
    """
    pairs = zip(reversed(leading), reversed(other.shape[:-2]), strict=False)
    if value.numel() == 0 or not all(a == b or 1 in (a, b) for a, b in pairs):
        raise ValueError(
            f"{name} must have leading dimensions that fit {other_name} {tuple(other.shape)}, got "
            f"{checks.describe(value)}"
        )


def _operands(
    log_q: Tensor, log_w: Tensor | None, check: Callable[..., Tensor]
) -> tuple[Tensor, Tensor]:
    """Checked and broadcastable (..., k, Y) log_q and (..., k, 1) log_w, uniform by default."""
    log_q = accumulator(check("log_q", log_q, ..., "k", "Y"))
    k = log_q.shape[-2]
    if log_w is None:
        return log_q, log_q.new_full((k, 1), -math.log(k))
    log_w = distributions.log_weights("log_w", log_w, k)
    checks.same_device("log_w", log_w, "log_q", log_q)
    fits("log_w", log_w, log_w.shape[:-1], "log_q", log_q)
    return log_q, log_w.to(log_q.dtype).unsqueeze(-1)


def _target_rows(target: Tensor, log_q: Tensor) -> Tensor:
    """Target probabilities in the dtype of ``log_q``, checked against its label count."""
    checks.floating("target", target, ..., log_q.shape[-1], why=" as log_q has labels")
    checks.same_device("target", target, "log_q", log_q)
    fits("target", target, target.shape[:-1], "log_q", log_q)
    target = checks.usable(target)
    if checks.visible(target):
        low = target.detach().amin().item()
        error = (target.detach().sum(-1, dtype=torch.float64) - 1).abs().max().item()
        if not (low >= 0 and error <= distributions.tolerance(target.dtype)):
            raise ValueError(
                f"target must hold probabilities that sum to 1, got a minimum of {low:g}, error "
                f"{error:g}"
            )
    return distributions.normalised(target).to(log_q.dtype)


def cross_entropy(target: Tensor, log_p: Tensor) -> Tensor:
    """H(target, p) = -sum_y target(y) log p(y) in nats, unchecked; (..., Y), (..., Y) -> (...).

    A label of target probability 0 contributes exactly 0, also where ``log_p`` is -inf.
    """
    return -(target * log_p.masked_fill(target == 0, 0.0)).sum(-1)


def induce(log_q: Tensor, log_w: Tensor | None = None) -> Tensor:
    """The induced model log Q̂(y|s) = log sum_e w_e Q(y|s,e) (eq. 4; eqs. 6 and 18 with uniform
    weights).

    Args:
        log_q: (..., k, Y) log-probabilities of the full model in k extended contexts.
        log_w: (..., k) log-weights log π(e|s), normalised; uniform by default. -inf leaves a
            context out.

    Returns:
        (..., Y) log-probabilities in nats.

    Raises:
        TypeError: an argument is not a floating-point tensor.
        ValueError: shapes or devices do not fit; on CPU also NaN, positive log_q, or weights that
            are not normalised.

    >>> import torch
    >>> log_q = torch.tensor([[0.9, 0.1], [0.5, 0.5]]).log()  # k = 2 contexts, Y = 2 labels
    >>> induce(log_q).exp()
    tensor([0.7000, 0.3000])
    """
    log_q, log_w = _operands(log_q, log_w, distributions.log_probabilities)
    return log_sum_exp_(log_q + log_w)


def imm_risk(target: Tensor, log_q: Tensor, log_w: Tensor | None = None) -> Tensor:
    """The IMM risk H(P̂(·|s), Q̂(·|s)) of each short context (eqs. 7, 9, 12), in nats.

    Args:
        target: (..., Y) probabilities of the restricted model.
        log_q: (..., k, Y) log-probabilities of the full model.
        log_w: (..., k) normalised log-weights; uniform by default.

    Returns:
        (...) cross-entropies. Subtract the target's entropy for the KL divergence of eq. 5.

    Raises:
        TypeError, ValueError: as :func:`induce`; also a target with another number of labels.

    >>> import torch
    >>> log_q = torch.tensor([[0.9, 0.1], [0.5, 0.5]]).log()
    >>> imm_risk(torch.tensor([0.7, 0.3]), log_q)  # the target's own entropy: a perfect match
    tensor(0.6109)
    """
    log_q, log_w = _operands(log_q, log_w, distributions.log_distributions)
    target = _target_rows(target, log_q)
    return cross_entropy(target, log_sum_exp_(log_q + log_w))


def noising_risk(target: Tensor, log_q: Tensor, log_w: Tensor | None = None) -> Tensor:
    """The risk of noising and of reverse distillation, sum_e w_e H(P̂(·|s), Q(·|s,e)) (eqs. 14,
    15), in nats.

    Jensen's inequality makes it an upper bound of :func:`imm_risk`, with the same arguments and
    errors. The two agree when k = 1 or when Q does not depend on e.

    >>> import torch
    >>> log_q = torch.tensor([[0.9, 0.1], [0.5, 0.5]]).log()
    >>> noising_risk(torch.tensor([0.7, 0.3]), log_q)
    tensor(0.7288)
    """
    log_q, log_w = _operands(log_q, log_w, distributions.log_distributions)
    target = _target_rows(target, log_q)
    weight = log_w.exp().squeeze(-1)
    # a context of weight 0 counts for nothing, even where it gives a label probability 0
    risk = cross_entropy(target.unsqueeze(-2), log_q.masked_fill(log_w == -math.inf, 0.0))
    return (weight * risk).sum(-1)


def crosstalk(log_q: Tensor, log_w: Tensor | None = None) -> Tensor:
    """The crosstalk C_i(y) = w_i Q_i(y) / sum_j w_j Q_j(y) of Appendix C.2 (eq. 20), without a
    gradient.

    It is the posterior of the extended context given the label, and ``-target * crosstalk`` is
    exactly the gradient of :func:`imm_risk` with respect to ``log_q``: ``-(target * crosstalk *
    log_q).sum()`` has the risk's gradient and splits into k terms that can be computed one after
    another.

    Args:
        log_q: (..., k, Y) log-probabilities of the full model.
        log_w: (..., k) normalised log-weights; uniform by default.

    Returns:
        (..., k, Y) weights that sum to 1 over k; 0 for a label that no context gives any
        probability.

    Raises:
        TypeError, ValueError: as :func:`induce`.

    >>> import torch
    >>> crosstalk(torch.tensor([[0.9, 0.1], [0.5, 0.5]]).log())
    tensor([[0.6429, 0.1667],
            [0.3571, 0.8333]])
    """
    log_q, log_w = _operands(log_q, log_w, distributions.log_probabilities)
    x = (log_q + log_w).detach()
    dead = (x == -math.inf).all(-2, keepdim=True)
    return torch.softmax(x.masked_fill(dead, 0.0), dim=-2).masked_fill(dead, 0.0)


def undo_class_weights(logits: Tensor, weight: Tensor) -> Tensor:
    """Log-probabilities of the population, of a model trained by a class-weighted cross-entropy:
    ``(logits - log weight).log_softmax(-1)``.

    The weighted loss is least where Q(y|x) is proportional to w_y P(y|x): a model of a population
    whose class y is w_y times as frequent. A restricted model of the real one contradicts it, and
    IMM would undo the weights. What ``query`` answers, and what a surrogate is given, has to be
    this; the cross-entropy keeps its weights and logits, and a decision made by the logits too.

    Args:
        logits: (..., Y) of the full model; log-probabilities will do.
        weight: (Y,) class weights, as of ``torch.nn.CrossEntropyLoss``; above 0.

    Raises:
        TypeError: an argument is not a floating-point tensor.
        ValueError: another number of weights or another device; on CPU also weights that are not
            finite and above 0, or a row of logits with NaN, inf or nothing but -inf.

    >>> import torch
    >>> weight = torch.tensor([1.0, 9.0])                        # the second of two classes is rare
    >>> undo_class_weights(torch.tensor([0.5, 0.5]).log(), weight).exp()
    tensor([0.9000, 0.1000])
    """
    labels = checks.floating("logits", logits, ..., "Y").shape[-1]
    checks.floating("weight", weight, labels, why=", a number per label")
    checks.same_device("weight", weight, "logits", logits)
    if checks.visible(weight) and not (weight.isfinite() & (weight > 0)).all():
        raise ValueError(f"weight must be finite and above 0, got {weight.tolist()[:8]}")
    if checks.visible(logits) and not logits.detach().amax(-1).isfinite().all():
        raise ValueError(
            "logits must have a finite largest entry in each row, got NaN, inf or -inf"
        )
    logits = accumulator(logits)
    # the logarithm first: a weight of float64 may be too small for float32
    log_weight = accumulator(checks.usable(weight)).log()
    return (logits - log_weight.to(logits.dtype)).log_softmax(-1)
