"""What the IMM term of a part of a batch adds to a fused last layer, by which labels are corrected:
all, those seen after the short context, or none.

Each function takes the :class:`imm_lib.FusedIMM`, the part's step and its logits, probabilities Q
and (N,) log of their sum; it moves the running average Q̂ and returns a :class:`Term`.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from imm_lib import checks, distributed
from imm_lib.averages import Pairs, Step, at_average, each, members, move, row_sums
from imm_lib.head import Head
from imm_lib.segments import groups
from imm_lib.sums import dot, inner

if TYPE_CHECKING:
    from imm_lib.fused import FusedIMM


class Term(NamedTuple):
    """A part's term Σ_n -Σ_y w_n(y) log Q_n(y), with w = P̂ Q/Q̂ held constant."""

    mass: Tensor  # (N,) Σ_y w
    value: Tensor  # () sum over the data points
    risk: Tensor  # () sum of the risks
    subtract: Callable[[Tensor, float], Tensor]  # (gradient, λ): takes λ w away in place


def _subtract(w: Tensor) -> Callable[[Tensor, float], Tensor]:
    return lambda gradient, lam: gradient.sub_(w, alpha=lam)


def correct_all(
    module: "FusedIMM", head: Head, step: Step, logits: Tensor, q: Tensor, log_sum: Tensor
) -> Term:
    """As :class:`imm_lib.MovingAverageIMM`, whose value and gradient these are."""
    inverse, size = step.inverse, len(step.part.groups.short)
    target, count = module.target_rows(step.part.groups.short), members(step, log_sum)
    average, log_average = at_average(
        module, head, step, None, lambda: row_sums(head, step, q), log_sum
    )
    idle = count.unsqueeze(1) == 0
    if not checks.visible(idle) or idle.any():  # what is not asked for may be NaN
        average, log_average = average.masked_fill(idle, 1.0), log_average.masked_fill(idle, 0.0)
    # a row more, of zeros, for data points that do not count
    scale, counted = head.scratch("sums", size + 1), head.scratch("other", size)
    scale[size] = 0.0
    risk = -dot(torch.mul(target, count.unsqueeze(1), out=counted), log_average)
    torch.div(target, average, out=scale[:size])
    w = torch.index_select(scale, 0, inverse, out=head.scratch("w", len(q))).mul_(q)
    if module.max_ratio < math.inf:
        torch.mul(target, module.max_ratio, out=scale[:size])
        most = torch.index_select(scale, 0, inverse, out=head.scratch("other", len(q)))
        torch.minimum(w, most, out=w)
    mass = w.sum(1)
    value = inner(mass, log_sum) - inner(w, logits)
    return Term(mass, value, risk, _subtract(w))


def correct_none(
    module: "FusedIMM", head: Head, step: Step, logits: Tensor, q: Tensor, log_sum: Tensor
) -> Term:
    """Reverse distillation, w = P̂."""
    w, found = head.scratch("w", len(q)), step.part.groups
    torch.index_select(module.target_rows(found.short), 0, found.inverse, out=w)
    if step.counts is not None:
        w.mul_(step.counts.unsqueeze(1))
    mass = w.sum(1)
    risk = inner(mass, log_sum) - inner(w, logits)
    return Term(mass, risk, risk, _subtract(w))


HEAVY = 2**12
"""Data points times pairs from which a short context is worked on by itself: a dense block, not a
list of places.
"""


class Block(NamedTuple):
    """A short context of many pairs and data points, which lie side by side."""

    rows: slice  # of the part's data points
    pairs: slice  # of the table


def _pairs(module: "FusedIMM", short: Tensor, real: Tensor | None) -> Pairs:
    """The pairs of (G,) short contexts, of which only the ``real`` ones have any."""
    bigram = module.bigram
    group, place, there = bigram.entries(short)
    lengths = bigram.starts[short + 1] - bigram.starts[short] if there is None else None
    for known in (there, None if real is None else real[group]):
        if known is not None:
            place = place.where(known, len(module.table) - 1)
    return Pairs(group, place, lengths)


def _blocks(module: "FusedIMM", step: Step) -> tuple[list[Block], Tensor | slice]:
    """The short contexts of a part that are worked on by themselves, and the data points of all
    others.
    """
    found, starts = step.part.groups, module.bigram.starts
    if step.counts is not None or not checks.visible(starts):
        return [], slice(None)
    first, last = starts[found.short], starts[found.short + 1]
    heavy = (last - first) * found.members >= HEAVY
    ends = found.members.cumsum(0)
    columns = zip(
        *(x[heavy].tolist() for x in (ends - found.members, ends, first, last)), strict=True
    )
    blocks = [Block(slice(a, b), slice(c, d)) for a, b, c, d in columns]
    return blocks, (~heavy)[found.inverse].nonzero().squeeze(1) if blocks else slice(None)


class Seen(NamedTuple):
    """Q of a part's data points at the labels that were seen, in blocks and in one list."""

    blocks: list[Block]
    in_blocks: list[Tensor]  # (n, e) each
    points: Tensor | slice  # those of the list
    own: Pairs  # theirs
    flat: Tensor  # (K,) places in (N, Y) rows
    at: Tensor  # (K,)

    def add_to(self, by_place: Tensor) -> Tensor:
        """Adds the sums of Q to an entry for each place in the table."""
        for block, q in zip(self.blocks, self.in_blocks, strict=True):
            by_place[block.pairs] += q.sum(0)
        return by_place.scatter_add_(0, self.own.place, self.at)


def seen(module: "FusedIMM", step: Step, q: Tensor) -> Seen:
    """Q at the pairs of each data point."""
    blocks, points = _blocks(module, step)
    label, inverse = module.pair_label, step.part.groups.inverse[points]
    dense = [q[b.rows].index_select(1, label[b.pairs]) for b in blocks]
    own = _pairs(module, step.part.groups.short[inverse], step.counts)
    rows = own.group if isinstance(points, slice) else points[own.group]
    flat = label.index_select(0, own.place).add_(rows, alpha=q.shape[1])
    return Seen(blocks, dense, points, own, flat, q.view(-1).index_select(0, flat))


def correct_seen(
    module: "FusedIMM", head: Head, step: Step, logits: Tensor, q: Tensor, log_sum: Tensor
) -> Term:
    """w = P̂ Q/Q̂ for labels that were seen, and w = P̂ = γ(s) b(y) for the others: γ(s) b(y) is of
    rank one, and what is added to it is sparse.
    """
    found, size = step.part.groups, len(step.part.groups.short)
    there, by_place = seen(module, step, q), head.zeros("sums", len(module.table))
    pairs = _pairs(module, found.short, None if checks.visible(q) else found.members > 0)
    average, log_average = at_average(
        module,
        head,
        step,
        pairs,
        lambda: there.add_to(by_place).index_select(0, pairs.place),
        log_sum,
    )
    target = module.pair_target.index_select(0, pairs.place)
    count = members(step, log_sum)
    unused = (target == 0) | (count == 0).index_select(0, pairs.group)  # these may be NaN
    rest = 1 - pairs.sums(average.masked_fill(unused, 0.0), size)
    risk = pairs.sums(target * log_average.masked_fill(unused, 0.0), size)
    risk = risk + module.unseen[found.short] * rest.clamp(min=torch.finfo(rest.dtype).tiny).log()
    by_place.index_copy_(0, pairs.place, (target / average).masked_fill_(unused, 0.0))
    by_place[-1:].zero_()  # what is to be forgotten
    own, changes = there.own, []
    short = found.short[found.inverse]
    gamma, mass = module.gamma[short], module.unseen[short]
    if step.counts is not None:
        gamma, mass = gamma * step.counts, mass * step.counts
    for block, at in zip(there.blocks, there.in_blocks, strict=True):
        w = module.corrected(block.pairs, at.mul_(by_place[block.pairs]))
        mass[block.rows] += w.sum(1)
        changes.append(w.sub_(module.pair_tail[block.pairs]))
    w = module.corrected(own.place, there.at.mul_(by_place.index_select(0, own.place)))
    mass[there.points] += own.sums(w, len(mass[there.points]))
    change = w.sub_(module.pair_tail.index_select(0, own.place))
    by_place.index_fill_(0, pairs.place, 0.0)  # as the next part needs it
    head.outer[step.part.points] = gamma

    def subtract(gradient: Tensor, lam: float) -> Tensor:
        for block, some in zip(there.blocks, changes, strict=True):
            label = module.pair_label[block.pairs]
            gradient[block.rows].index_add_(1, label, some, alpha=-lam)
        gradient.view(-1).scatter_add_(0, there.flat, change.mul_(-lam))
        return gradient

    risk = -inner(count, risk)
    return Term(mass, risk, risk, subtract)


def move_all(module: "FusedIMM", head: Head, step: Step, q: Tensor, log_sum: Tensor) -> None:
    """Move the average by a part of which short contexts may be incomplete."""
    move(module, head, step, None, row_sums(head, step, q), log_sum)


def move_seen(module: "FusedIMM", head: Head, step: Step, q: Tensor, log_sum: Tensor) -> None:
    """The same, for labels that were seen."""
    found = step.part.groups
    pairs = _pairs(module, found.short, None if checks.visible(q) else found.members > 0)
    by_place = seen(module, step, q).add_to(head.zeros("sums", len(module.table)))
    move(module, head, step, pairs, by_place.index_select(0, pairs.place), log_sum)
    by_place.index_fill_(0, pairs.place, 0.0)
    by_place[-1:].zero_()


def move_together(
    module: "FusedIMM", head: Head, steps: list[Step], short: Tensor, counted: Tensor | None
) -> None:
    """Move the average by the probabilities of all ranks."""
    if module.labels == "none":
        return
    own = short if counted is None else short[counted > 0]
    found = groups(distributed.gathered(own, module.group)[0])
    dense = module.labels == "all"
    real = None if checks.visible(found.short) else found.members > 0
    pairs = None if dense else _pairs(module, found.short, real)
    size = (len(found.short), module.shape[1]) if dense else (len(module.table),)
    sums = module.table.new_zeros(size)
    for step in steps:
        q = head.probabilities(step.part.points)
        if dense:  # what nothing counts for is not among them, and adds 0
            place = torch.searchsorted(found.short, step.part.groups.short)
            sums.index_add_(0, place.clamp_(max=len(sums) - 1), row_sums(head, step, q))
        else:
            seen(module, step, q).add_to(sums)
    sums = distributed.summed(sums if pairs is None else sums[pairs.place], module.group)
    visited = module.visited.index_select(0, found.short)
    some = visited.to(sums)
    kept = each(pairs, some * (1 - module.momentum))
    added = torch.where(visited, some * module.momentum, 1.0) / found.members.clamp(min=1)
    place = found.short if pairs is None else pairs.place
    old = module.table.index_select(0, place)
    moved = old.exp().where(each(pairs, visited), 0.0).mul_(kept)
    moved = moved.addcmul_(sums, each(pairs, added)).log_()
    moved = torch.where(moved.isnan(), old, moved)
    if pairs is None:
        found.write(module.table, moved)
    else:
        module.table.index_copy_(0, place, moved)
    found.write(module.visited, torch.ones_like(visited))


CORRECTIONS = {
    "all": (correct_all, move_all),
    "seen": (correct_seen, move_seen),
    "none": (correct_none, None),
}
"""By which labels are corrected: the term of a part, and how a part alone moves the average."""
