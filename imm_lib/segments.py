"""Data points of a batch that share a short context: who they are, and a running average over them.

The number of groups depends on the values of a batch. Where looking at them would make a GPU wait
or break a compiled graph (``checks.visible``), there are as many groups as data points instead, and
those left over have no members: every shape is then known beforehand.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from imm_lib import checks
from imm_lib.distributed import Group, highest, summed
from imm_lib.sums import add_rows, segment_max


class Groups(NamedTuple):
    """The short contexts of B data points, one group each, in the order of their ids."""

    short: Tensor  # (G, ...) ids; groups without members repeat the last one
    inverse: Tensor  # (B,) group of each data point
    members: Tensor  # (G,) how many data points each has

    def write(self, table: Tensor, rows: Tensor) -> None:
        """``table[short] = rows`` for the groups that have members; (G, ...) rows."""
        if not checks.visible(self.short):
            # what a group without members writes is what the last one with members does
            last = self.inverse.amax()
            rows = rows.index_select(0, torch.arange(len(rows), device=rows.device).minimum(last))
        table.index_copy_(0, self.short, rows)


def unique(short: Tensor) -> Groups:
    """:func:`groups` that have members, on any device: their number is waited for."""
    dim = None if short.dim() == 1 else 0
    return Groups(*torch.unique(short, dim=dim, return_inverse=True, return_counts=True))


def groups(short: Tensor) -> Groups:
    """The groups of (B,) ids or (B, d) rows: one sort, O(B log B), of each column.

    >>> groups(torch.tensor([7, 3, 7]))
    Groups(short=tensor([3, 7]), inverse=tensor([1, 0, 1]), members=tensor([1, 2]))
    """
    if checks.visible(short):
        return unique(short)
    order = torch.arange(len(short), device=short.device)
    for column in reversed(short.flatten(1).unbind(1)) if short.dim() > 1 else [short]:
        order = order[column[order].sort(stable=True).indices]
    ordered = short[order]
    begins = torch.ones_like(order)
    other = ordered[1:] != ordered[:-1]
    begins[1:] = other if other.dim() == 1 else other.flatten(1).any(1)
    place = begins.cumsum(0) - 1
    inverse = torch.empty_like(place).scatter_(0, order, place)
    ids = ordered[-1:].expand_as(ordered).clone().index_copy_(0, place, ordered)
    members = torch.zeros_like(place).scatter_add_(0, place, torch.ones_like(place))
    return Groups(ids, inverse, members)


class Part(NamedTuple):
    """N data points of a batch that are worked on together."""

    points: Tensor | slice  # (N,) places in the batch
    groups: Groups
    total: Tensor  # (G,) how many data points of the whole batch count for the short contexts
    begins: Tensor  # (G,) whether the first of them is here
    whole: bool  # whether all of them are


def cuts(ends: list[int], room: int) -> Iterator[tuple[slice, slice]]:
    """Neighbouring groups, and their members, by where each group ends: at most ``room`` of them,
    if no group has more.
    """
    first = begun = 0
    for group, end in enumerate(ends, start=1):
        if group == len(ends) or ends[group] - begun > room:
            yield slice(first, group), slice(begun, end)
            first, begun = group, end


def parts(
    short: Tensor, room: int, counted: Tensor | None = None, ordered: bool = False
) -> list[Part]:
    """A batch of (B,) ids in parts of whole short contexts, of at most ``room`` data points where
    none has more; one part where no value may be looked at. ``counted`` (B,) is 0 for data points
    that are not to be counted, and 1 for the others. ``ordered``: the data points of a short
    context lie side by side in its part, if values may be looked at.
    """
    found = groups(short)
    total, first = found.members, torch.ones_like(found.short, dtype=torch.bool)
    if counted is not None:
        total = torch.zeros_like(total).index_add_(0, found.inverse, counted)
    if (len(short) <= room and not ordered) or not checks.visible(short):
        return [Part(slice(None), found, total, first, True)]
    order, ends = found.inverse.argsort(stable=True), found.members.cumsum(0).tolist()
    cut = []
    for own, places in cuts(ends, room):
        points = order[places]
        some = Groups(found.short[own], found.inverse[points] - own.start, found.members[own])
        cut.append(Part(points, some, total[own], first[own], True))
    return cut


def split(part: Part, room: int) -> list[Part]:
    """A part of whole short contexts in parts of at most ``room`` data points, in which they may be
    incomplete.
    """
    size = len(part.groups.inverse)
    if size <= room:
        return [part]
    place, order = part.groups.inverse.sort(stable=True)
    short, total = part.groups.short[place], part.total[place]
    points = order if isinstance(part.points, slice) else part.points[order]
    cut = []
    for begin in range(0, size, room):
        own = slice(begin, begin + room)
        found = groups(short[own])
        count = torch.zeros_like(found.members).scatter_(0, found.inverse, total[own])
        begins = found.short != short[begin - 1] if begin else torch.ones_like(count) > 0
        cut.append(Part(points[own], found, count, begins, False))
    return cut


def mix(
    old: Tensor,
    log_q: Tensor,
    inverse: Tensor,
    kept: Tensor,
    added: Tensor,
    group: Group = None,
) -> tuple[Tensor, Tensor]:
    """A step of a running average in log space, log(kept e^old + added Σ e^log_q), the sum over the
    data points of each group; and what the data points are to it.

    (G, Y) ``old``, which is overwritten, (B, Y) ``log_q``, (B,) ``inverse`` and (G, 1) weights ->
    (G, Y) log of the new average, and the ratio (B, Y) of each data point's e^log_q to it: finite,
    0 where both are 0. The ranks of ``group`` have the same groups and old average.

    Both sides are taken relative to the larger of the old row and the group's largest entry. So the
    exponentials are at most 1, their sum is bounded below, and labels as unlikely as e^-200
    survive.
    """
    larger = torch.maximum(highest(segment_max(log_q, inverse, len(old)), group), old)
    ratio = log_q.sub(larger.index_select(0, inverse)).exp_()
    total = old.sub_(larger).exp_().mul_(kept)
    total.addcmul_(summed(add_rows(torch.zeros_like(total), inverse, ratio), group), added)
    new = larger.add_(total.log())
    # a label that neither side allows has ratio 0, whatever stands for 1 / 0 here
    scale = total.reciprocal_().clamp_(max=torch.finfo(total.dtype).max)
    return new, ratio.mul_(scale.index_select(0, inverse))


def over(log_q: Tensor, rows: Tensor, inverse: Tensor) -> Tensor:
    """(B, Y) ratio of e^log_q to e^rows of each data point's group: finite, 0 where both are 0."""
    floor = rows.clamp(min=torch.finfo(rows.dtype).min)
    ratio = log_q.sub(floor.index_select(0, inverse)).exp_()
    return ratio.clamp_(max=torch.finfo(ratio.dtype).max)
