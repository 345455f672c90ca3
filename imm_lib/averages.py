"""The running average of Q̂ of a fused last layer: which part of it a step moves, and how."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from imm_lib import checks
from imm_lib.head import Head
from imm_lib.segments import Part
from imm_lib.sums import add_rows

if TYPE_CHECKING:
    from imm_lib.fused import FusedIMM


class Step(NamedTuple):
    """How the average of a part's G short contexts moves: kept · old + added · sum."""

    part: Part
    counts: Tensor | None  # (N,) whether a data point counts; None if all do
    kept: Tensor  # (G,)
    added: Tensor  # (G,)
    moves: bool  # whether it is to be done yet

    @property
    def inverse(self) -> Tensor:
        """(N,) the short context of each data point; G where it does not count."""
        found = self.part.groups
        return (
            found.inverse
            if self.counts is None
            else found.inverse.where(self.counts, len(found.short))
        )


class Pairs(NamedTuple):
    """Corrected labels of G short contexts, E pairs in all, or of N data points."""

    group: Tensor  # (E,) the short context, in order
    place: Tensor  # (E,) place in the table, whose last one is for what is to be forgotten
    lengths: Tensor | None  # (G,) how many each has; None if all have the same number

    def sums(self, values: Tensor, size: int) -> Tensor:
        """(E,) values -> (G,) their sums by short context; five times as fast as index_add."""
        if self.lengths is None:
            return values.view(size, -1).sum(1)
        return torch.segment_reduce(values, "sum", lengths=self.lengths, unsafe=True)


def each(pairs: Pairs | None, rows: Tensor) -> Tensor:
    """(G,) values of short contexts, at the entries of the table."""
    return rows.unsqueeze(1) if pairs is None else rows.index_select(0, pairs.group)


def stored(module: "FusedIMM", head: Head, part: Part, pairs: Pairs | None, name: str) -> Tensor:
    """A copy of the table, rows or pairs."""
    if pairs is not None:
        return module.table.index_select(0, pairs.place)
    out = head.scratch(name, len(part.groups.short))
    return torch.index_select(module.table, 0, part.groups.short, out=out)


def move(
    module: "FusedIMM", head: Head, step: Step, pairs: Pairs | None, sums: Tensor, log_sum: Tensor
) -> tuple[Tensor, Tensor]:
    """Move the average by sums of Q over the part; it and its log, at the entries of the table."""
    part, found = step.part, step.part.groups
    visited = module.visited.index_select(0, found.short)
    average = stored(module, head, part, pairs, "average")
    if not (checks.visible(visited) and visited.all()):
        average.masked_fill_(~each(pairs, visited), -math.inf)
    average.exp_().mul_(each(pairs, step.kept)).addcmul_(sums, each(pairs, step.added))
    log_average = torch.log(average, out=None if pairs else head.scratch("log", len(average)))
    moved = part.total > 0
    if not checks.visible(moved) or not moved.all():
        # a row that nothing counts for stays, and one that NaN would poison
        poison = torch.zeros_like(step.added).index_add_(
            0, found.inverse, (~log_sum.isfinite()).to(average.dtype)
        )
        moved = moved & (poison == 0)
        before = stored(module, head, part, pairs, "other")
        log_average = torch.where(each(pairs, moved), log_average, before)
        average = log_average.exp()
    if pairs is None:
        found.write(module.table, log_average)
    else:
        module.table.index_copy_(0, pairs.place, log_average)
    found.write(module.visited, visited | moved)
    return average, log_average


def at_average(
    module: "FusedIMM",
    head: Head,
    step: Step,
    pairs: Pairs | None,
    sums: Callable[[], Tensor],
    log_sum: Tensor,
) -> tuple[Tensor, Tensor]:
    """Q̂, positive, and its log, at the entries of the table: moved first if it is still to do."""
    if step.moves and step.part.whole:
        average, log_average = move(module, head, step, pairs, sums(), log_sum)
    else:
        log_average = stored(module, head, step.part, pairs, "log")
        average = log_average.exp()
    return average.clamp_(min=torch.finfo(average.dtype).tiny), log_average


def members(step: Step, log_sum: Tensor) -> Tensor:
    """(G,) how many data points of the part count for each short context."""
    size = len(step.part.groups.short)
    return log_sum.new_zeros(size + 1).index_add_(0, step.inverse, torch.ones_like(log_sum))[:size]


def row_sums(head: Head, step: Step, q: Tensor) -> Tensor:
    """(G, Y) sums of Q over the data points that count for each short context."""
    size = len(step.part.groups.short)
    return add_rows(head.scratch("sums", size + 1).zero_(), step.inverse, q)[:size]
