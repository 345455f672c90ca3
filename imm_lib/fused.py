"""IMM at the price of plain training: the last linear layer, its cross-entropy and the corrected
term of eq. 13 computed together, over parts of the batch.

With Q the model's probabilities at one data point, P̂ the target, Q̂ the running average and
W = Σ_y P̂ Q/Q̂, the gradient of cross-entropy + λ IMM by the logits is (1 + λW) Q - onehot(label) -
λ P̂ Q/Q̂. It is formed in the forward pass, and what it is made of is forgotten part by part.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from imm_lib import checks, distributed
from imm_lib.distributed import Group, checked_group
from imm_lib.estimators import Target
from imm_lib.head import Batch, Head
from imm_lib.induced import dot
from imm_lib.precision import KeepsPrecision
from imm_lib.segments import Part, groups, parts, split
from imm_lib.tables import (
    check_sizes,
    check_target,
    check_visited,
    pairs_of,
    reset,
    target_rows,
)
from imm_lib.targets import KneserNeyBigram
from imm_lib.targets.table import CallableTarget, as_target

LABELS = "all", "seen", "none"


class _Step(NamedTuple):
    """How the average of a part's G short contexts moves: kept · old + added · sum."""

    part: Part
    inverse: Tensor  # (N,) the short context of each data point; G where it does not count
    kept: Tensor  # (G,)
    added: Tensor  # (G,)


class _Pairs(NamedTuple):
    """The corrected labels of G short contexts, E pairs in all."""

    group: Tensor  # (E,) the short context
    flat: Tensor  # (E,) place in (G, Y) rows
    place: Tensor  # (E,) place in the table, whose last one is for what is to be forgotten
    target: Tensor  # (E,) P̂
    tail: Tensor  # (E,) what P̂ would be, were the label not seen


class FusedIMM(KeepsPrecision):
    """Cross-entropy + λ · moving-average IMM of a linear last layer, in one (eqs. 5, 13).

    It is ``cross_entropy(logits, labels) + lam * MovingAverageIMM(...)(log_softmax(logits), short)``
    for ``logits = hidden @ weight.T + bias``: value, gradient and table. But it holds the logits of
    one part of the batch at a time, and costs about as much as the cross-entropy alone.
    Probabilities below the smallest normal number (e^-87 in single precision) count as 0.

    Args:
        target: (S, Y) table, or callable short -> (B, Y), of the restricted model's probabilities.
        num_short: number S of short contexts.
        num_labels: number Y of labels.
        momentum: weight of the new value in the running average, in (0, 1].
        max_ratio: upper limit of the correction Q/Q̂.
        labels: which are corrected. "all": as by :class:`imm_lib.MovingAverageIMM`, with a table of
            S Y numbers. "seen": those that a :class:`imm_lib.KneserNeyBigram` has seen after the
            short context, with one number for each such pair; the others are distilled as they are,
            Q/Q̂ = 1. "none": reverse distillation, without a table.
        group: ranks whose batches count as one, with equal tables; see :mod:`imm_lib.distributed`.
            A step sends the sums of Q where they are corrected.

    Buffers, in ``state_dict``: ``table``, log Q̂, (S, Y) for "all", else (pairs + 1,);
    ``visited`` (S,), the short contexts met so far.

    Raises:
        TypeError, ValueError: when built, for numbers out of range, sizes that do not fit the
            target, or "seen" with a target that does not tell; when called, see :meth:`forward`; on
            load, for a state of another size or kind.

    >>> import torch
    >>> fused = FusedIMM(torch.tensor([[0.7, 0.3]]), num_short=1, num_labels=2)
    >>> hidden, weight = torch.tensor([[9.0], [1.0]]).log(), torch.tensor([[1.0], [0.0]])
    >>> loss = fused(hidden, weight, None, labels=torch.tensor([0, 1]), short=torch.tensor([0, 0]))
    >>> fused.cross_entropy, fused.risk
    (tensor(0.3993), tensor(0.6109))
    """

    table: Tensor
    visited: Tensor
    cross_entropy: Tensor | None
    risk: Tensor | None

    def __init__(
        self,
        target: Target,
        num_short: int,
        num_labels: int,
        momentum: float = 0.1,
        max_ratio: float = math.inf,
        labels: str = "all",
        group: Group = None,
    ):
        super().__init__()
        self.target, self.cross_entropy, self.risk = as_target(target), None, None
        self.shape = checks.count("num_short", num_short), checks.count("num_labels", num_labels)
        check_target(self.target, self.shape)
        self.momentum = checks.number("momentum", momentum, 0, 1, open_low=True)
        self.max_ratio = (
            max_ratio if max_ratio == math.inf else checks.number("max_ratio", max_ratio, 1)
        )
        if labels not in LABELS:
            raise ValueError(f"labels must be one of {', '.join(LABELS)}, got {labels!r}")
        if labels == "seen" and not isinstance(self.target, KneserNeyBigram):
            raise ValueError(
                "labels = 'seen' needs a target that tells which labels it has seen after a short "
                f"context, a KneserNeyBigram, got {checks.describe(target)}"
            )
        self.labels, self.group = labels, checked_group(group)
        pairs = len(self.target.keys) if labels == "seen" else 0
        size = self.shape if labels == "all" else (pairs + 1,)
        self.register_buffer("table", torch.empty(size))
        self.register_buffer("visited", torch.empty(num_short, dtype=torch.bool))
        self.register_load_state_dict_pre_hook(check_sizes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Forget the table, for instance after ``to_empty``."""
        reset(self.table, self.visited)

    def forward(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        short: Tensor,
        lam: float = 1.0,
        ignore_index: int = -100,
        label_weights: Tensor | None = None,
    ) -> Tensor:
        """Cross-entropy + ``lam`` times the IMM risk, both means over the batch.

        The gradient is the corrected one of eq. 13. For labels "all" the value adds what
        :class:`imm_lib.MovingAverageIMM` returns, which means nothing, else the risk. In train mode
        the average moves first; in eval mode, and at ``lam`` = 0, it stands still.
        ``.cross_entropy`` and ``.risk`` then hold the two parts, detached, in nats; the risk of
        labels that are not corrected is that of the model itself.

        Args:
            hidden: (N, H) features of the data points.
            weight: (Y, H) of the last layer.
            bias: (Y,) of the last layer, or None.
            labels: (N,) ids.
            short: (N,) short contexts.
            lam: λ; at 0 the plain cross-entropy.
            ignore_index: the label of data points that count neither here nor in the average.
            label_weights: (Y,) weights of the labels in the cross-entropy; not in IMM.

        Raises:
            TypeError, ValueError: for arguments of other kinds, sizes or devices; on a CPU also for
                ids out of range, NaN and infinite values, a batch of which nothing counts, and in
                eval mode a short context never visited. Nothing has changed then.
        """
        lam = checks.number("lam", lam, 0)
        if checks.transformed(hidden) or checks.transformed(weight):
            raise ValueError(
                "FusedIMM does not work under torch.func, as its gradient is formed in the forward "
                "pass: use cross-entropy plus SampledIMM"
            )
        head = Head(hidden, weight, bias, self.table.dtype)
        short = self._short(head, short)
        batch = Batch.of(head, labels, ignore_index, label_weights, self.group)
        if lam and not self.training and checks.visible(short) and self.labels != "none":
            check_visited(self.visited, short, "in train mode")
        with torch.no_grad():
            steps = self._steps(short, batch.counted, head.room)
            if lam and isinstance(self.target, CallableTarget):
                for step in steps:  # a bad answer is to change nothing
                    self._rows(step.part)
            # a checkpoint runs its forward pass again in the backward pass: the table has moved then
            moves = lam > 0 and self.training and not checks.in_backward()
            if moves and self.group is not None:
                self._move_together(head, steps, short, batch.counted)
                moves = False
            value = self._value(head, steps, batch, lam, moves)
        return head.scalar(value)

    @torch.no_grad()
    def refresh(
        self, batches: Iterable[tuple[Tensor, Tensor]], weight: Tensor, bias: Tensor | None = None
    ) -> None:
        """Rebuild the table by one sweep over the data: the mean of Q over each short context's data
        points (eq. 6), where corrected.

        Args:
            batches: pairs of (N, H) features and (N,) short contexts, together the whole data set.
            weight: (Y, H) of the last layer.
            bias: (Y,) of the last layer, or None.

        Raises:
            TypeError, ValueError: for a bad or empty sweep; the table is then what it was.
        """
        total, count = (
            torch.zeros_like(self.table),
            torch.zeros_like(self.visited, dtype=torch.long),
        )
        for hidden, short in pairs_of(batches, "hidden"):
            head = Head(hidden, weight, bias, self.table.dtype)
            short = self._short(head, short)
            for step in self._steps(short, None, head.room):
                _, q, _ = head.softmax(step.part.points)
                pairs = self._pairs(step.part)
                place = step.part.groups.short if pairs is None else pairs.place
                total.index_add_(0, place, self._sums(head, step, pairs, q))
            count.index_add_(0, short, torch.ones_like(short))
        total, count = (distributed.summed(x, self.group) for x in (total, count))
        if not count.any():
            raise ValueError("batches must hold at least one (hidden, short) pair, got none")
        self.visited.copy_(count > 0)
        if self.labels == "all":
            count = count.unsqueeze(1)
        elif self.labels == "seen":  # the count of each pair's short context
            count = torch.cat([count[self.target.keys // self.shape[1]], count[:1]])
        else:
            count = count[:1]
        self.table.copy_(total.div_(count).log_())

    def _value(
        self, head: Head, steps: list[_Step], batch: Batch, lam: float, moves: bool
    ) -> Tensor:
        """The value, whose gradient goes to ``head``."""
        entropy, term, risk = torch.zeros(3, dtype=self.table.dtype, device=self.table.device)
        for step in steps:
            if moves and not step.part.whole:
                _, q, log_sum = head.softmax(step.part.points)
                self._move(head, step, self._pairs(step.part), q, log_sum)
        for step in steps:
            points = step.part.points
            logits, q, log_sum = head.softmax(points)
            label, coefficient = batch.labels[points].unsqueeze(1), batch.weights[points]
            one = -coefficient.unsqueeze(1)
            entropy = entropy - (one * (log_sum.unsqueeze(1) - logits.gather(1, label))).sum()
            if lam:
                w, part_risk = self._weights(head, step, logits, q, log_sum, moves)
                mass, risk = w.sum(1), risk + part_risk
                if self.labels == "all":
                    term = term + mass @ log_sum - torch.dot(w.view(-1), logits.view(-1))
                coefficient = coefficient + lam * mass
            if any(head.wanted):
                gradient = q.mul_(coefficient.unsqueeze(1)).scatter_add_(1, label, one)
                head.add(points, gradient.sub_(w, alpha=lam) if lam else gradient, 1 / batch.size)
        self.cross_entropy = distributed.mean(entropy / batch.size, self.group)
        self.risk = distributed.mean(risk / batch.size, self.group) if lam else None
        return (entropy + lam * (term if self.labels == "all" else risk)) / batch.size

    def _weights(
        self, head: Head, step: _Step, logits: Tensor, q: Tensor, log_sum: Tensor, moves: bool
    ) -> tuple[Tensor, Tensor]:
        """(N, Y) P̂ Q/Q̂, with Q/Q̂ = 1 for labels that are not corrected and 0 for data points that
        do not count; and the sum of the risks.
        """
        part, inverse, pairs = step.part, step.inverse, self._pairs(step.part)
        if moves and part.whole:
            log_average = self._move(head, step, pairs, q, log_sum)
        else:
            log_average = self._stored(head, part, pairs)
        size = len(part.groups.short)
        members = q.new_zeros(size + 1).index_add_(0, inverse, torch.ones_like(log_sum))[:size]
        if not (moves and part.whole):  # what nothing counts for may have no average yet
            idle = members == 0
            log_average.masked_fill_(idle.unsqueeze(1) if pairs is None else idle[pairs.group], 0.0)
        # a row more, of zeros, for data points that do not count
        scale, most = (head.scratch(name, size + 1) for name in ("sums", "rows"))
        w, other = (head.scratch(name, len(q)) for name in ("w", "other"))
        scale[size], most[size] = 0.0, 0.0
        if pairs is None:
            target = self._rows(part)
            torch.mul(target, members.unsqueeze(1), out=most[:size])
            risk = -dot(most[:size], log_average)
            average = log_average.exp_().clamp_(min=torch.finfo(q.dtype).tiny)
            torch.div(target, average, out=scale[:size])
            torch.index_select(scale, 0, inverse, out=w).mul_(q)
            if self.max_ratio < math.inf:
                torch.mul(target, self.max_ratio, out=most[:size])
        else:
            risk = -dot(pairs.target * members[pairs.group], log_average)
            self._tail(part, pairs, most[:size])
            torch.index_select(most, 0, inverse, out=w)
            mass = most.sum(1).index_select(0, inverse)
            risk = risk + mass @ log_sum - torch.dot(w.view(-1), logits.view(-1))
            average = log_average.exp_().clamp_(min=torch.finfo(q.dtype).tiny)
            scale.zero_().view(-1).index_add_(0, pairs.flat, pairs.target / average)
            w.addcmul_(torch.index_select(scale, 0, inverse, out=other), q)
            if self.max_ratio < math.inf:
                most.view(-1).index_add_(0, pairs.flat, pairs.target * self.max_ratio)
        if self.max_ratio < math.inf:
            torch.minimum(w, torch.index_select(most, 0, inverse, out=other), out=w)
        return w, risk

    def _tail(self, part: Part, pairs: _Pairs, out: Tensor) -> None:
        """(G, Y) the target where it is distilled as it is, 0 where it is corrected."""
        if self.labels == "none":
            out.copy_(self._rows(part))
            return
        gamma = self.target.gamma.index_select(0, part.groups.short).unsqueeze(1)
        torch.mul(gamma, self.target.backoff, out=out)
        out.view(-1).index_add_(0, pairs.flat, -pairs.tail)

    def _move(
        self, head: Head, step: _Step, pairs: _Pairs | None, q: Tensor, log_sum: Tensor
    ) -> Tensor:
        """Move the average by the part's probabilities; its log, where corrected."""
        part, found = step.part, step.part.groups

        def each(rows: Tensor) -> Tensor:
            return rows.unsqueeze(1) if pairs is None else rows[pairs.group]

        visited = self.visited.index_select(0, found.short)
        old = self._stored(head, part, pairs)
        if not (checks.visible(visited) and visited.all()):
            old.masked_fill_(~each(visited), -math.inf)
        old.exp_().mul_(each(step.kept))
        average = old.addcmul_(self._sums(head, step, pairs, q), each(step.added))
        log_average, moved = average.log_(), part.total > 0
        if not checks.visible(moved) or not moved.all():
            # a row that nothing counts for stays, and one that NaN would poison
            poison = torch.zeros_like(step.added).index_add_(
                0, found.inverse, (~log_sum.isfinite()).to(q.dtype)
            )
            moved = moved & (poison == 0)
            before = self._stored(head, part, pairs, "other")
            log_average = torch.where(each(moved), log_average, before)
        known = visited | moved
        if pairs is None:
            found.write(self.table, log_average)
        else:
            self.table.index_copy_(0, pairs.place, log_average)
        found.write(self.visited, known)
        if not (checks.visible(known) and known.all()):
            log_average = log_average.masked_fill(~each(known), 0.0)
        return log_average

    def _move_together(
        self, head: Head, steps: list[_Step], short: Tensor, counted: Tensor | None
    ) -> None:
        """Move the average by the probabilities of all ranks."""
        joint, _ = distributed.gathered(
            short if counted is None else short[counted > 0], self.group
        )
        found = groups(joint)
        everything = Part(slice(None), found, found.members, found.short >= 0, True)
        pairs = self._pairs(everything)
        place = found.short if pairs is None else pairs.place
        sums = torch.zeros_like(self.table.index_select(0, place))
        for step in steps:
            own = self._pairs(step.part)
            _, q, _ = head.softmax(step.part.points)
            there = step.part.groups.short if own is None else own.place
            # what nothing counts for is not among them, and adds 0
            at = torch.searchsorted(place, there).clamp_(max=max(len(place) - 1, 0))
            sums.index_add_(0, at, self._sums(head, step, own, q))
        sums = distributed.summed(sums, self.group)
        visited = self.visited.index_select(0, found.short)
        some = visited.to(sums)
        kept = some * (1 - self.momentum)
        added = torch.where(visited, some * self.momentum, 1.0) / found.members.clamp(min=1)
        if pairs is None:
            kept, added, known = (x.unsqueeze(1) for x in (kept, added, visited))
        else:
            kept, added, known = (x[pairs.group] for x in (kept, added, visited))
        old = self.table.index_select(0, place)
        moved = old.exp().where(known, 0.0).mul_(kept).addcmul_(sums, added).log_()
        moved = torch.where(moved.isnan(), old, moved)
        if pairs is None:
            found.write(self.table, moved)
        else:
            self.table.index_copy_(0, pairs.place, moved)
        found.write(self.visited, torch.ones_like(visited))

    def _sums(self, head: Head, step: _Step, pairs: _Pairs | None, q: Tensor) -> Tensor:
        """The sums of Q over the data points of each short context, where corrected."""
        size = len(step.part.groups.short)
        sums = head.scratch("sums", size + 1).zero_().index_add_(0, step.inverse, q)
        return sums[:size] if pairs is None else sums.view(-1)[pairs.flat]

    def _stored(
        self, head: Head, part: Part, pairs: _Pairs | None, name: str = "average"
    ) -> Tensor:
        """A copy of the table's log of the average, where corrected."""
        if pairs is not None:
            return self.table.index_select(0, pairs.place)
        out = head.scratch(name, len(part.groups.short))
        return torch.index_select(self.table, 0, part.groups.short, out=out)

    def _pairs(self, part: Part) -> _Pairs | None:
        """The labels that are corrected; None for all."""
        short, bigram = part.groups.short, self.target
        if self.labels == "all":
            return None
        if self.labels == "none":
            nowhere = short.new_zeros(0)
            return _Pairs(nowhere, nowhere, nowhere, *(self.table.new_zeros(2, 0)))
        group, place, real = bigram.entries(short)
        label = bigram.keys[place] % self.shape[1]
        tail = bigram.gamma[short][group] * bigram.backoff[label]
        target = (bigram.values[place] + tail).to(self.table.dtype)
        if real is not None:
            real = real & (part.groups.members > 0)[group]
            place = torch.where(real, place, len(self.table) - 1)
            target, tail = target * real, tail * real
        flat = group * self.shape[1] + label
        return _Pairs(group, flat, place, target, tail.to(self.table.dtype))

    def _rows(self, part: Part) -> Tensor:
        """(G, Y) the target."""
        return target_rows(self.target, part.groups.short, self.shape[1], self.table.dtype)

    def _steps(self, short: Tensor, counted: Tensor | None, room: int) -> list[_Step]:
        """The parts of a batch, and how far each moves the average; nothing has moved yet."""
        steps = []
        for whole in parts(short, room, counted):
            for part in split(whole, room):
                visited = self.visited.index_select(0, part.groups.short)
                some = visited.to(self.table.dtype)
                kept = torch.where(part.begins, some * (1 - self.momentum), 1.0)
                step = torch.where(visited, some * self.momentum, 1.0)
                inverse = part.groups.inverse
                if counted is not None:
                    inverse = inverse.where(counted[part.points] > 0, len(visited))
                steps.append(_Step(part, inverse, kept, step / part.total.clamp(min=1)))
        return steps

    def _short(self, head: Head, short: Tensor) -> Tensor:
        """Checked (N,) short contexts."""
        short = checks.ids("short", short, self.shape[0])
        checks.same_device("short", short, "hidden", head.hidden)
        checks.same_device("hidden", head.hidden, "the table", self.table)
        if len(short) != len(head.hidden):
            raise ValueError(
                f"short must be ({len(head.hidden)},) as hidden has rows, got {checks.describe(short)}"
            )
        if len(head.weight) != self.shape[1]:
            raise ValueError(
                f"weight must have num_labels = {self.shape[1]} rows, got {checks.describe(head.weight)}"
            )
        return short
