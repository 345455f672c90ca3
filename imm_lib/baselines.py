"""What IMM is compared with: noising, reverse distillation and interpolation, with the estimators'
signatures.
"""

import torch
from torch import Tensor, nn

from imm_lib import checks, distributed, distributions
from imm_lib.checks import accumulator
from imm_lib.contexts import Contexts
from imm_lib.distributed import Group, checked_group
from imm_lib.divergences import Divergence
from imm_lib.estimators import Drawing, Query, Target, answers, checked_batch
from imm_lib.induced import cross_entropy
from imm_lib.sums import log_sum_exp, weighted
from imm_lib.targets.table import as_target


class SampledNoising(Drawing):
    """Noising with soft targets: the target against the full model itself in k sampled extended
    contexts (eq. 14).

    The arguments, call and errors of :class:`imm_lib.SampledIMM`, but for ``sequential``; with k =
    1 the two are equal. The estimate is unbiased for the noising risk at every k, and that risk is
    an upper bound of IMM's (eq. 15).

    >>> import torch
    >>> from imm_lib import BeliefContexts
    >>> log_q = torch.tensor([[0.9, 0.1]]).log()
    >>> noising = SampledNoising(torch.tensor([[0.7, 0.3]]), BeliefContexts(torch.tensor([[1.0]])))
    >>> noising(lambda short, extended: log_q[extended], torch.tensor([0]))
    tensor(0.7645)
    """

    def __init__(
        self,
        target: Target,
        contexts: Contexts,
        k: int = 1,
        generator: torch.Generator | None = None,
        divergence: Divergence | str = cross_entropy,
        group: Group = None,
    ):
        super().__init__(target, contexts, k, generator, divergence, group)

    def forward(self, query: Query, short: Tensor, weight: Tensor | None = None) -> Tensor:
        """Mean risk over the batch, in nats; arguments as of :meth:`imm_lib.ExactIMM.forward`."""
        asked, rows, extended, count, total = self.draw(short, weight)
        log_q = answers(query, asked, extended, rows.shape[1])
        risk = self.divergence(rows.to(log_q.dtype).unsqueeze(1), log_q).mean(1)
        return self.mean(risk, count, total)


def _pair(target: nn.Module, log_q: Tensor, short: Tensor) -> tuple[Tensor, Tensor]:
    """Checked target rows and log-probabilities, both (B, Y) and in the dtype to accumulate in."""
    rows = target(checked_batch(short))
    hint = checks.coarser(log_q, rows.shape[1])
    log_q = accumulator(distributions.log_distributions("log_q", log_q, *rows.shape, why=hint))
    checks.same_device("log_q", log_q, "target", rows)
    return rows.to(log_q.dtype), log_q


class ReverseKD(nn.Module):
    """Reverse distillation: mean_t H(P̂(·|s_t), Q(·|s_t,e_t)), the target against the full model
    (eqs. 1, 14).

    It is eq. 13 without the correction, and the same objective as noising. Inconsistent unless λ
    vanishes (Prop. 6.1).

    Args:
        target: (S, Y) table, or callable short -> (B, Y), of the restricted model's probabilities.
        group: ranks whose batches count as one; see :mod:`imm_lib.distributed`.

    Raises:
        TypeError, ValueError: when built, for a bad target; when called, for bad log-probabilities
            or ids.

    >>> import torch
    >>> ReverseKD(torch.tensor([[0.7, 0.3]]))(torch.tensor([[0.9, 0.1]]).log(), torch.tensor([0]))
    tensor(0.7645)
    """

    risk: Tensor | None

    def __init__(self, target: Target, group: Group = None):
        super().__init__()
        self.target, self.risk, self.group = as_target(target), None, checked_group(group)

    def forward(self, log_q: Tensor, short: Tensor, weight: Tensor | None = None) -> Tensor:
        """Mean cross-entropy in nats, from (B, Y) log-probabilities, (B,) short contexts and, if
        they differ, (B,) weights of the data points.
        """
        rows, log_q = _pair(self.target, log_q, short)
        if weight is None:
            share = distributed.share(len(log_q), log_q, self.group)
        else:
            weight = distributions.point_weights(weight, short).to(rows.dtype)
            rows = rows * weight.unsqueeze(1)
            total = distributed.summed(weight.sum(), self.group)
            share = len(log_q) * distributed.ranks(self.group) / total
        mean = weighted(log_q, rows) * share
        self.risk = distributed.mean(mean.detach(), self.group)
        return mean


class Interpolation(nn.Module):
    """Interpolation at prediction time: log((1 - weight) Q(y|s,e) + weight P̂(y|s)). Nothing is
    trained.

    Args:
        target: (S, Y) table, or callable short -> (B, Y), of the restricted model's probabilities.
        weight: share of the target, in [0, 1].

    Raises:
        TypeError, ValueError: when built, for a bad target or weight; when called, for bad
            log-probabilities or ids.

    >>> import torch
    >>> mixture = Interpolation(torch.tensor([[0.7, 0.3]]), 0.5)
    >>> mixture(torch.tensor([[0.9, 0.1]]).log(), torch.tensor([0])).exp()
    tensor([[0.8000, 0.2000]])
    """

    def __init__(self, target: Target, weight: float):
        super().__init__()
        self.target, self.weight = as_target(target), checks.number("weight", weight, 0, 1)

    def forward(self, log_q: Tensor, short: Tensor) -> Tensor:
        """(B, Y) log-probabilities and (B,) short contexts -> (B, Y) log-probabilities."""
        rows, log_q = _pair(self.target, log_q, short)
        share = log_q.new_tensor(self.weight)
        parts = [log_q + (1 - share).log(), rows.log() + share.log()]
        # not torch.logaddexp, whose gradient is NaN where both are -inf
        return log_sum_exp(torch.stack(parts, -2))
