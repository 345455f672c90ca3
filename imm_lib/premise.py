"""Before training with IMM: does the restricted model know something that the full model's own
average does not?

Both checks take held-out restricted pairs (s, y), which need no extended context: ``surprise`` the
target alone, ``lead`` the target and a model that was trained without IMM.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from imm_lib import checks, distributions
from imm_lib.contexts import Contexts, GroupedContexts
from imm_lib.estimators import Query, Target, checked_batch, checked_contexts, induced_rows
from imm_lib.segments import unique
from imm_lib.targets.table import as_target

PART = 64
"""Short contexts whose extended contexts are run at a time."""


@dataclass(frozen=True)
class Lead:
    """How far a target is ahead of an induced model on labelled pairs, in nats per pair.

    Attributes:
        target: mean of -log P̂(y|s); infinite where a label came that P̂ rules out.
        induced: mean of -log Q̂(y|s).
        ahead: induced less target. Above 0, the target is the better model of the pairs.
        error: standard error of ``ahead`` over the pairs, as if they were independent; infinite if
            ``ahead`` is.
        slope: mean of Σ_y (P̂ - Q̂)(1{y} - Q̂), between -2 and 2. Above 0, a small step of the
            induced model's logits along IMM's gradient lowers the loss on such pairs, also where
            the target as a whole is the worse model.
        slope_error: its standard error, from the pairs or as if the model were right about them,
            whichever is larger.
        pairs: how many were compared.
        dropped: pairs that were left out, as their group has no training point.
    """

    target: float
    induced: float
    ahead: float
    error: float
    slope: float
    slope_error: float
    pairs: int
    dropped: int = 0

    def decision(self, level: float = 0.05) -> str:
        """ "go", "stop" or "open": whether there is something to teach, by :attr:`slope`.

        Of targets without any use, with a slope of 0 or less, at most the share ``level`` gets a
        "go"; of those with a slope of 0 or more at most as many a "stop". Both hold by Student's t,
        for independent pairs, the better the more there are; the book's chapter on what to use when
        measures them. "open" says that the pairs do not tell: then let validation choose λ from
        weights among which is 0.

        Raises:
            TypeError, ValueError: a level outside (0, 0.5).

        >>> Lead(0.5, 0.6, 0.1, 0.08, 0.04, 0.01, 50).decision()
        'go'
        """
        if not 0 < checks.number("level", level, 0, 0.5, open_low=True) < 0.5:
            raise ValueError(f"level must be below 0.5, got {level}")
        if self.slope_error == 0:
            return "open" if self.slope == 0 else ("go" if self.slope > 0 else "stop")
        tail = _student_tail(abs(self.slope) / self.slope_error, self.pairs - 1)
        if tail > level:
            return "open"
        return "go" if self.slope > 0 else "stop"


def _student_tail(t: float, freedom: int) -> float:
    """P(T > t) for t of at least 0, by Wallace's normal approximation to Student's t."""
    z = (8 * freedom + 1) / (8 * freedom + 3) * math.sqrt(freedom * math.log1p(t * t / freedom))
    return math.erfc(z / math.sqrt(2)) / 2


def _seen(contexts: Contexts, short: Tensor, drop: bool) -> Tensor:
    """(N,) which pairs have a group with training points; ValueError unless all or ``drop``."""
    if not isinstance(contexts, GroupedContexts) or not checks.visible(short):
        return torch.ones(len(short), dtype=torch.bool, device=short.device)
    seen = contexts.counts[checks.ids("short", short, len(contexts.counts))] > 0
    if not seen.all() and not drop:
        groups = short[~seen].unique().tolist()
        named = ", ".join(str(group) for group in groups[:20]) + (", ..." if groups[20:] else "")
        raise ValueError(
            f"short must be of groups with training points, got {int((~seen).sum())} of "
            f"{len(short)} pairs in {len(groups)} groups never seen: {named}; leave them out with "
            "drop_unseen=True"
        )
    return seen


@torch.no_grad()
def lead(
    query: Query,
    contexts: Contexts,
    target: Target,
    short: Tensor,
    label: Tensor,
    drop_unseen: bool = False,
) -> Lead:
    """Compare the target with what a trained model's induced model says of held-out pairs.

    The model is run in every extended context of each distinct short context: with a kernel on n
    points, n times as many. It should be in evaluation mode.

    Args:
        query, contexts: as of :class:`imm_lib.ExactIMM`; the model's training points.
        target: (S, Y) table, or callable short -> (B, Y), of the restricted model's probabilities.
        short: (N,) or (N, d) short contexts of the pairs, on which neither the target nor the model
            was fitted.
        label: (N,) their labels, on the same device.
        drop_unseen: leave out the pairs of groups without a training point, and count them.

    Raises:
        TypeError, ValueError: fewer than two pairs, labels outside [0, Y) or of another number,
            short contexts without a training point (for :class:`imm_lib.GroupedContexts`; all are
            named), or a bad target, contexts or answer of ``query``. On a GPU, values are not
            looked at.

    >>> from imm_lib import GroupedContexts
    >>> log_q = torch.tensor([[0.9, 0.1], [0.1, 0.9]]).log()  # induced: one half each
    >>> contexts, rows = GroupedContexts(torch.tensor([0, 0])), torch.tensor([[0.8, 0.2]])
    >>> zeros = torch.zeros(4, dtype=torch.long)
    >>> found = lead(lambda short, extended: log_q[extended], contexts, rows, zeros, zeros)
    >>> round(found.ahead, 3)  # log 0.8 / 0.5
    0.47
    """
    checks.flag("drop_unseen", drop_unseen)
    target, contexts = as_target(target, contexts), checked_contexts(contexts)
    if len(short := checks.held("short", checked_batch(short))) < 2:
        raise ValueError(f"short must hold at least two pairs, got {checks.describe(short)}")
    label = checks.held("label", checks.ids("label", label))
    checks.shaped("label", label, len(short), why=", as long as short")
    checks.same_device("label", label, "short", short)
    seen = _seen(contexts, short, drop_unseen)
    if int(seen.sum()) < 2:
        raise ValueError(
            f"short must hold at least two pairs of seen groups, got {int(seen.sum())}"
        )
    short, label, dropped = short[seen], label[seen], int((~seen).sum())
    distinct, inverse, _ = unique(short)
    rows = checks.double("target(short)", target(distinct))
    label = checks.ids("label", label, rows.shape[1]).unsqueeze(1)
    parts = [induced_rows(query, contexts, part, rows.shape[1]) for part in distinct.split(PART)]
    log_q = torch.cat(parts).double()
    own, other = (-log_p[inverse].gather(1, label).squeeze(1) for log_p in (rows.log(), log_q))
    q = log_q.exp()
    step = (rows - q)[inverse]
    expected = (step * q[inverse]).sum(1)
    slope = step.gather(1, label).squeeze(1) - expected
    # few pairs without a rare label vary too little: not less than if the model were right
    variance = (step.square() * q[inverse]).sum(1) - expected.square()
    ahead, pairs = other - own, len(short)
    error = ahead.std() / pairs**0.5 if ahead.isfinite().all() else ahead.new_tensor(math.inf)
    return Lead(
        target=own.mean().item(),
        induced=other.mean().item(),
        ahead=ahead.mean().item(),
        error=error.item(),
        slope=slope.mean().item(),
        slope_error=(torch.maximum(slope.var(), variance.mean()) / pairs).sqrt().item(),
        pairs=pairs,
        dropped=dropped,
    )


@dataclass(frozen=True)
class Surprise:
    """How a target does on labelled pairs, beside how it expects to do; in nats per pair.

    Attributes:
        loss: mean of -log P̂(y|s); infinite where a label came that P̂ rules out.
        expected: mean of the entropies of P̂(·|s), the loss if the target were right.
        z: (loss - expected) in standard errors, also if the target were right.
    """

    loss: float
    expected: float
    z: float


def surprise(rows: Tensor, label: Tensor) -> Surprise:
    """A check before training: is the target right about pairs (s, y) from the population that the
    model is for?

    Of a right target z has mean 0 and variance 1; it is about normal if many pairs are uncertain,
    and has a long upper tail where P̂ is nearly sure. A z far above 0 says that the labels surprise
    it, as those of a shifted population do; far below 0, that it is less certain than it could be.
    **A small |z| does not say that the target is right**: one that is wrong and as uncertain as it
    is wrong has z near 0, and one of equal rows always. Look at ``loss`` too: a target that is no
    better than the shares of the labels has nothing to teach. No model is needed.

    Args:
        rows: (N, Y) the target's probabilities at the short contexts of N held-out pairs.
        label: (N,) their labels.

    Raises:
        TypeError, ValueError: no pairs, rows that are no distributions, or labels outside [0, Y).

    >>> surprise(torch.tensor([[0.9, 0.1], [0.9, 0.1]]), torch.tensor([1, 1])).z > 3
    True
    """
    distributions.probabilities("rows", rows, "N", "Y")
    label = checks.held("label", checks.ids("label", label, rows.shape[1]))
    checks.shaped("label", label, len(rows), why=", as long as rows")
    p = checks.double("rows", rows)
    p = p / p.sum(1, keepdim=True)
    log_p = torch.where(
        p > 0, p, 1.0
    ).log()  # a label without probability adds nothing to the expectations
    entropy = -(p * log_p).sum(1)
    variance = (p * (-log_p - entropy.unsqueeze(1)).square()).sum(1)
    loss = -p.gather(1, label.unsqueeze(1)).squeeze(1).log()
    difference, error = (loss - entropy).mean(), variance.sum().sqrt() / len(p)
    rounding = 1e-12 * (1 + entropy.mean())
    if difference.isinf() or (error <= rounding < difference.abs()):
        z = math.copysign(math.inf, difference)
    else:
        z = 0.0 if error <= rounding else (difference / error).item()
    return Surprise(loss.mean().item(), entropy.mean().item(), z)
