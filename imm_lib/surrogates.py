"""Estimators that reuse the pass of the cross-entropy: a surrogate whose gradient estimates the IMM
risk's (eq. 13).

A call takes the log-probabilities that the full model has just computed for its data points, and
their short contexts. It returns one scalar to differentiate, a mean over the batch whose value
means nothing; add λ times it to the cross-entropy. After each call ``.risk`` holds the detached
risk, of the table of Q̂ that is kept, in nats: log this. The table takes 4 S Y bytes in single
precision.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from imm_lib import checks, distributed, distributions
from imm_lib.checks import accumulator
from imm_lib.distributed import Group
from imm_lib.divergences import Divergence, as_divergence, pull
from imm_lib.estimators import Target
from imm_lib.induced import cross_entropy
from imm_lib.segments import Part, groups, mix, over, parts
from imm_lib.sums import add_rows, dot, inner, once, segment_max, weighted
from imm_lib.tables import RunningTable, check_visited, pairs_of

CACHE = 2**20
"""Bytes of log-probabilities that are worked on at a time on a CPU, so that what is computed stays
in its cache.
"""


class _TableIMM(RunningTable):
    """A table of log Q̂(y|s) that outlives the batch, and the corrected cross-entropy of eq. 13
    against it.
    """

    max_ratio: float = math.inf

    def __init__(
        self,
        target: Target,
        num_short: int,
        num_labels: int,
        divergence: Divergence | str = cross_entropy,
        group: Group = None,
    ):
        super().__init__()
        self.match(target, num_short, num_labels, group)
        self.divergence = as_divergence(divergence)
        self.make_table(self.shape, num_short)

    def _batch(self, log_q: Tensor, short: Tensor, name: str = "log_q") -> tuple[Tensor, Tensor]:
        """Checked (B, Y) log_q and (B,) short."""
        short = checks.ids("short", short, len(self.table))
        labels = self.table.shape[1]
        hint = checks.coarser(log_q, labels)
        distributions.log_distributions(name, log_q, len(short), labels, why=hint)
        checks.same_device(name, log_q, "the table", self.table)
        checks.same_device("short", short, "the table", self.table)
        return log_q, short

    def _parts(self, short: Tensor) -> tuple[list[Part], int]:
        """The batch in parts, and its size.

        With a group one part, whose short contexts and size are those of the joint batch.
        """
        if self.group is None:
            room = CACHE // (self.table.shape[1] * self.table.element_size())
            return parts(short, room if short.device.type == "cpu" else len(short)), len(short)
        joint, own = distributed.gathered(short, self.group)
        found = groups(joint)
        found, begins = found._replace(inverse=found.inverse[own]), torch.ones_like(found.short) > 0
        return [Part(slice(None), found, found.members, begins, True)], len(joint)

    @torch.no_grad()
    def _ratio(self, log_q: Tensor, part: Part, idle: Tensor | None) -> tuple[Tensor, Tensor]:
        """Q / Q̂ (N, Y) against the rows (G, Y) of the table, and them; groups that are ``idle``
        (G, 1) leave no trace there.
        """
        table = self.table.index_select(0, part.groups.short)
        return over(log_q, table, part.groups.inverse), table

    def _surrogate(
        self, log_q: Tensor, numerator: Tensor, short: Tensor, weight: Tensor | None
    ) -> Tensor:
        """-mean_t sum_y pulled_t(y) log Q(y|s_t,e_t), with the constant pulled = Q / Q̂ x pull.

        The pull of the cross-entropy is the target (eq. 13), of another divergence its -dD/dlog Q̂
        at the table. Q of the correction is ``numerator``.
        """
        numerator, risk = numerator.detach(), self.table.new_zeros(())
        dtype = self.table.dtype
        pulled = torch.empty_like(numerator, dtype=dtype)
        some, size = self._parts(short)
        total: Tensor | float = size
        if weight is not None:
            weight = distributions.point_weights(weight, short).to(dtype)
            total = distributed.summed(weight.sum(), self.group)
        # all before the first step, so that a bad answer changes nothing
        targets = [self.target_rows(p.groups.short) for p in some]
        for part, target in zip(some, targets, strict=True):
            inverse, counted = part.groups.inverse, part.groups.members.to(dtype)
            limit: Tensor | float = self.max_ratio
            rows, idle = numerator[part.points].to(dtype), None
            if weight is not None:
                # a weighted mean of Q is a mean of Q times the weight, relative to its group's mean
                own = weight[part.points]
                sums = add_rows(torch.zeros_like(counted), inverse, own)
                sums = distributed.summed(sums, self.group)
                share = (sums / counted.clamp(min=1)).index_select(0, inverse).unsqueeze(1)
                relative = own.unsqueeze(1) / share.masked_fill(share == 0, 1.0)
                rows = rows + relative.log()
                idle, counted, limit = (sums == 0).unsqueeze(1), sums, limit * relative
            ratio, table = self._ratio(rows, part, idle)
            if self.max_ratio != math.inf:
                ratio = ratio.clamp_(max=limit)
            if weight is not None:
                ratio = ratio.mul_(share)
            pull_rows = pull(self.divergence, target, table).index_select(0, inverse)
            found = ratio.mul_(pull_rows)
            pulled[part.points] = found if weight is None else found.masked_fill_(share == 0, 0.0)
            risk = risk + self._sum_of_risks(counted, target, table)
        self.risk = checks.lasting(risk / total)
        log_q = accumulator(log_q)
        scale = len(log_q) * distributed.ranks(self.group) / total
        return once(weighted(log_q, pulled.to(log_q.dtype)) * scale)

    def _sum_of_risks(self, counted: Tensor, target: Tensor, table: Tensor) -> Tensor:
        if self.divergence is cross_entropy:  # half the passes over memory
            return -dot(target * counted.unsqueeze(1), table)
        found = self.divergence(target, table)
        return inner(counted, found.masked_fill(counted == 0, 0.0))


class SerializedIMM(_TableIMM):
    """Serialized IMM: the corrected cross-entropy of eq. 13 with a periodically refreshed Q̂†
    (Algorithm 2).

    Between two refreshes the correction Q†/Q̂† is frozen: both sides belong to the model Q† of the
    last refresh. Each period then minimises a majoriser of the risk (a generalised EM step), which
    is why the stale ratio is safe and the current Q over a stale table is not.

    Args:
        target: (S, Y) table, or callable short -> (B, Y), of the restricted model's probabilities.
        num_short: number S of short contexts.
        num_labels: number Y of labels.
        divergence: between target and table, a function or a name of :mod:`imm_lib.divergences`.
        group: ranks whose batches count as one, with equal tables; see :mod:`imm_lib.distributed`.

    Buffers, in ``state_dict``: ``table`` (S, Y), log Q̂†; ``visited`` (S,), the short contexts of
    the last refresh.

    Raises:
        TypeError, ValueError: when built, for sizes that do not fit the target; when called, for
            bad log-probabilities, ids or devices, or a short context that no refresh has seen; on
            load, for a state of another size.

    >>> import torch
    >>> log_q = torch.tensor([[0.9, 0.1], [0.5, 0.5]]).log()  # two data points of one short context
    >>> short = torch.tensor([0, 0])
    >>> serialized = SerializedIMM(torch.tensor([[0.7, 0.3]]), num_short=1, num_labels=2)
    >>> serialized.refresh([(log_q, short)])
    >>> surrogate = serialized(log_q, short, log_q_frozen=log_q)
    >>> serialized.risk
    tensor(0.6109)
    """

    @torch.no_grad()
    def refresh(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Rebuild log Q̂† by one sweep over the data: the mean of Q† over each short context's data
        points (eq. 6).

        Args:
            batches: pairs of (B, Y) log-probabilities of Q† and (B,) short contexts, together the
                whole data set; with a group, this rank's part of it.

        Raises:
            TypeError, ValueError: for a bad or empty sweep; the table is then what it was.
        """
        total = torch.full_like(self.table, -math.inf)
        count = torch.zeros_like(self.visited, dtype=torch.long)
        for log_q, short in pairs_of(batches, "log_q"):
            log_q, short = self._batch(log_q, short)
            distinct, inverse, members = found = groups(short)
            rows, log_q = total.index_select(0, distinct), log_q.to(total.dtype)
            # relative to the larger of the old row and the batch's largest entry, nothing overflows
            # or is lost
            top = torch.maximum(segment_max(log_q, inverse, len(distinct)), rows)
            added = log_q.sub(top.index_select(0, inverse)).exp_()
            add_rows(rows.sub_(top).exp_(), inverse, added)
            found.write(total, rows.log_().add_(top))
            count.index_add_(0, distinct, members)
        if self.group is not None:
            top = distributed.highest(total, self.group).clamp_(min=torch.finfo(total.dtype).min)
            total = distributed.summed(total.sub_(top).exp_(), self.group).log_().add_(top)
            count = distributed.summed(count, self.group)
        if not count.any():
            raise ValueError("batches must hold at least one (log_q, short) pair, got none")
        self.visited.copy_(count > 0)
        # of the table's size each temporary would count; a row without data becomes -inf - -inf,
        # NaN
        self.table.copy_(total.sub_(count.to(total.dtype).log().unsqueeze(1)))

    def forward(
        self, log_q: Tensor, short: Tensor, log_q_frozen: Tensor, weight: Tensor | None = None
    ) -> Tensor:
        """The surrogate of eq. 13, a mean over the batch.

        Args:
            log_q: (B, Y) log-probabilities of the current model, to differentiate.
            short: (B,) short contexts.
            log_q_frozen: (B, Y) log-probabilities of Q†, the model of the last refresh, at the same
                data points.
            weight: (B,) weights of the data points in the mean; equal by default.
        """
        log_q, short = self._batch(log_q, short)
        log_q_frozen, _ = self._batch(log_q_frozen, short, "log_q_frozen")
        if weight is not None:
            weight = distributions.point_weights(weight, short)
        check_visited(self.visited, short, "by a refresh; call .refresh(...) first", weight)
        return self._surrogate(log_q, log_q_frozen, short, weight)


class MovingAverageIMM(_TableIMM):
    """The correction of eq. 13 against a running average of Q̂, kept in log space: no refresh
    sweep, no second model.

    In train mode each call first moves the rows of the batch's short contexts, Q̂ <- (1 - momentum)
    Q̂ + momentum times the mean of the current Q over the batch, and then differentiates the
    corrected cross-entropy of the current Q. Data points that share a short context are averaged
    before the step, and the first visit of a row sets it.

    In eval mode the table stands still. Held-out text has short contexts that no row was made for:
    there the mean of the batch takes the row's place, for this call alone. Large batches then give
    a better account of Q̂ than small ones.

    Args:
        target, num_short, num_labels, divergence, group: as of :class:`SerializedIMM`.
        momentum: weight of the new value, in (0, 1], as in BatchNorm; 1 keeps no memory.
        max_ratio: upper limit of the correction Q/Q̂, a guard against rows that lag behind the
            model.

    Buffers, in ``state_dict``: ``table`` (S, Y), log Q̂; ``visited`` (S,), the short contexts met
    so far.

    Raises:
        TypeError, ValueError: when built, for momentum or max_ratio out of range, or sizes that do
            not fit the target; when called, for bad log-probabilities, ids or devices; on load, for
            a state of another size.

    >>> import torch
    >>> log_q = torch.tensor([[0.9, 0.1], [0.5, 0.5]]).log()
    >>> average = MovingAverageIMM(torch.tensor([[0.7, 0.3]]), num_short=1, num_labels=2)
    >>> surrogate = average(log_q, torch.tensor([0, 0]))
    >>> average.table.exp()
    tensor([[0.7000, 0.3000]])
    """

    def __init__(
        self,
        target: Target,
        num_short: int,
        num_labels: int,
        momentum: float = 0.1,
        max_ratio: float = math.inf,
        divergence: Divergence | str = cross_entropy,
        group: Group = None,
    ):
        super().__init__(target, num_short, num_labels, divergence, group)
        self.momentum = checks.number("momentum", momentum, 0, 1, open_low=True)
        self.max_ratio = checks.limit("max_ratio", max_ratio, 1)

    def forward(self, log_q: Tensor, short: Tensor, weight: Tensor | None = None) -> Tensor:
        """The surrogate of eq. 13, a mean over the batch.

        Args:
            log_q, short: as of :class:`SerializedIMM`.
            weight: (B,) weights of the data points, in the mean and in the average of Q̂: one of
                weight 2 counts as two of weight 1, of 0 (padding, say) as none. Equal by default.
        """
        log_q, short = self._batch(log_q, short)
        if not self.training and checks.visible(short) and not self.visited.any():
            check_visited(self.visited, short, "in train mode")
        self.moves(log_q)
        return self._surrogate(log_q, log_q, short, weight)

    def _ratio(self, log_q: Tensor, part: Part, idle: Tensor | None) -> tuple[Tensor, Tensor]:
        short, moves = part.groups.short, self.moves(log_q)
        known = checks.in_backward() or (checks.visible(short) and self.visited[short].all())
        if known and not moves:
            return super()._ratio(log_q, part, idle)
        return self._mix(log_q, part, idle, moves)

    @torch.no_grad()
    def _mix(
        self, log_q: Tensor, part: Part, idle: Tensor | None, moves: bool
    ) -> tuple[Tensor, Tensor]:
        """Q / Q̂ (N, Y) against the rows that the part visits, moved or at their first visit, and
        these rows; the table takes them if it ``moves``.
        """
        found = part.groups
        visited = self.visited.index_select(0, found.short).unsqueeze(1)
        old = self.table.index_select(0, found.short)
        if not (checks.visible(visited) and visited.all()):
            old.masked_fill_(~visited, -math.inf)
        step = old.new_full((), self.momentum if moves else 0.0)
        step = torch.where(visited, step, torch.ones_like(step))
        if idle is not None:
            step = torch.where(idle, torch.zeros_like(step), step)
        added = step / found.members.clamp(min=1).unsqueeze(1)
        moved, ratio = mix(old, log_q, found.inverse, 1 - step, added, self.group)
        if not moves:
            return ratio, moved
        kept, sound = moved, torch.ones_like(visited) if idle is None else ~idle
        if not checks.visible(log_q):  # where NaN could not be refused, it must not stay
            sound = sound & ~moved.isnan().any(1, keepdim=True)
        if idle is not None or not checks.visible(log_q):
            kept = torch.where(sound, moved, self.table.index_select(0, found.short))
        found.write(self.table, kept)
        found.write(self.visited, (visited | sound).squeeze(1))
        return ratio, moved
