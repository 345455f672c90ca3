"""IMM at the price of plain training: the last linear layer, its cross-entropy and the corrected
term of eq. 13 computed together, over parts of the batch.

With Q the model's probabilities at one data point, P̂ the target, Q̂ the running average and
W = Σ_y P̂ Q/Q̂, the gradient of cross-entropy + λ IMM by the logits is (1 + λW) Q - onehot(label) -
λ P̂ Q/Q̂. It is formed in the forward pass, and what it is made of is forgotten part by part.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from imm_lib import checks, distributed
from imm_lib.averages import Step, row_sums
from imm_lib.corrections import CORRECTIONS, move_together, seen
from imm_lib.distributed import Group
from imm_lib.estimators import Target
from imm_lib.head import Batch, Head, Scratch, scratch_of
from imm_lib.segments import parts, split
from imm_lib.tables import RunningTable, check_visited, pairs_of
from imm_lib.targets import KneserNeyBigram
from imm_lib.targets.table import CallableTarget


class FusedIMM(RunningTable):
    """Cross-entropy + λ · moving-average IMM of a linear last layer, in one (eqs. 5, 13).

    It is ``cross_entropy(logits, labels) + lam * MovingAverageIMM(...)(log_q, short)`` for
    ``logits = hidden @ weight.T + bias`` and their log-softmax: value, gradient and table. But it
    holds the logits of one part of the batch at a time, and costs about as much as the
    cross-entropy alone.
    Probabilities below the smallest normal number (e^-87 in single precision) count as 0.

    Args:
        target, num_short, num_labels, momentum, max_ratio: as of :class:`imm_lib.MovingAverageIMM`.
        labels: which are corrected. "all": as by :class:`imm_lib.MovingAverageIMM`, with a table of
            S Y numbers. "seen": those that a :class:`imm_lib.KneserNeyBigram` has seen after the
            short context, with one number for each such pair; the others are distilled as they are,
            Q/Q̂ = 1. "none": reverse distillation, without a table.
        group: as there; a step sends the sums of Q where they are corrected.

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

    target: nn.Module
    pair_label: Tensor
    pair_target: Tensor
    pair_tail: Tensor
    gamma: Tensor
    unseen: Tensor
    backoff: Tensor
    cross_entropy: Tensor | None

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
        self.match(target, num_short, num_labels, group)
        self.momentum = checks.number("momentum", momentum, 0, 1, open_low=True)
        self.max_ratio = checks.limit("max_ratio", max_ratio, 1)
        if labels not in CORRECTIONS:
            raise ValueError(f"labels must be one of {', '.join(CORRECTIONS)}, got {labels!r}")
        if labels == "seen" and not isinstance(self.target, KneserNeyBigram):
            raise ValueError(
                "labels = 'seen' needs a target that tells which labels it has seen after a short "
                f"context, a KneserNeyBigram, got {checks.describe(target)}"
            )
        self.labels, self.cross_entropy, self.memory = labels, None, Scratch()
        size = {"all": self.shape, "none": (1,)}.get(labels) or (len(self.bigram.keys) + 1,)
        self.make_table(size, num_short)
        if labels == "seen":
            self._register_pairs()

    def _register_pairs(self) -> None:
        """What each pair needs, and after the last an entry for what is to be forgotten."""
        bigram = self.bigram
        short, label = bigram.keys // self.shape[1], bigram.keys % self.shape[1]
        tail = bigram.gamma[short] * bigram.backoff[label]
        unseen = (bigram.gamma * bigram.backoff.sum()).index_add(0, short, tail, alpha=-1)
        pairs = {"pair_label": label, "pair_target": bigram.values + tail, "pair_tail": tail}
        found = {name: torch.cat([x, x.new_zeros(1)]) for name, x in pairs.items()}
        found |= {"gamma": bigram.gamma, "unseen": unseen, "backoff": bigram.backoff}
        for name, value in found.items():
            kind = self.table.dtype if value.is_floating_point() else value.dtype
            self.register_buffer(name, value.to(kind), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        super()._apply(fn, recurse)
        if self.labels == "seen":
            self._register_pairs()  # in the new precision
        return self

    def _load_from_state_dict(self, *given: Any) -> None:
        super()._load_from_state_dict(*given)
        if self.labels == "seen" and self.table.dtype != self.gamma.dtype:
            self._register_pairs()  # assigned in another precision

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
        ``.cross_entropy`` and ``.risk`` then hold the two parts, detached, in nats. For labels
        "seen" the risk is that of the induced model with all others taken as one label.

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
        if any(
            checks.transformed(checks.tensor(*x)) for x in (("hidden", hidden), ("weight", weight))
        ):
            raise ValueError(
                "FusedIMM does not work under torch.func, as its gradient is formed in the forward "
                "pass: use cross-entropy plus SampledIMM"
            )
        head = Head(hidden, weight, bias, self.table.dtype, scratch_of(self.memory, hidden))
        short = self._short(head, short)
        batch = Batch.of(head, labels, ignore_index, label_weights, self.group)
        if lam and not self.training and self.labels != "none":
            check_visited(self.visited, short, "in train mode", batch.counted)
        with torch.no_grad():
            moves = lam > 0 and self.moves(hidden)
            steps = self._steps(short, batch.counted, head.room, moves and self.group is None)
            if lam and isinstance(self.target, CallableTarget):
                for step in steps:  # a bad answer is to change nothing
                    self.target_rows(step.part.groups.short)
            if moves and self.group is not None:
                move_together(self, head, steps, short, batch.counted)
            value = self._value(head, steps, batch, lam)
        return head.scalar(value)

    @property
    def bigram(self) -> KneserNeyBigram:
        """The target of labels "seen"."""
        return cast(KneserNeyBigram, self.target)

    @torch.no_grad()
    def refresh(
        self, batches: Iterable[tuple[Tensor, Tensor]], weight: Tensor, bias: Tensor | None = None
    ) -> None:
        """Rebuild the table by one sweep over the data: the mean of Q over each short context's
        data points (eq. 6), where corrected.

        Args:
            batches: pairs of (N, H) features and (N,) short contexts, together the whole data set.
            weight, bias: as of :meth:`forward`.

        Raises:
            TypeError, ValueError: for a bad or empty sweep; the table is then what it was.
        """
        total = torch.zeros_like(self.table)
        count = torch.zeros_like(self.visited, dtype=torch.long)
        for hidden, short in pairs_of(batches, "hidden"):
            head = Head(hidden, weight, bias, self.table.dtype, scratch_of(self.memory, hidden))
            short = self._short(head, short)
            for step in self._steps(short, None, head.room, moves=False):
                q = head.probabilities(step.part.points)
                if self.labels == "all":
                    total.index_add_(0, step.part.groups.short, row_sums(head, step, q))
                elif self.labels == "seen":
                    seen(self, step, q).add_to(total)
            count.index_add_(0, short, torch.ones_like(short))
        total, count = (distributed.summed(x, self.group) for x in (total, count))
        if not count.any():
            raise ValueError("batches must hold at least one (hidden, short) pair, got none")
        self.visited.copy_(count > 0)
        if self.labels == "all":
            self.table.copy_(total.div_(count.unsqueeze(1)).log_())
        elif self.labels == "seen":
            owner = self.bigram.keys // self.shape[1]
            self.table[:-1] = total[:-1].div_(count[owner]).log_()

    def corrected(self, place: Tensor | slice, w: Tensor) -> Tensor:
        """w = P̂ Q/Q̂ at places of the table, with the limit of Q/Q̂; in place."""
        if self.max_ratio == math.inf:
            return w
        return torch.minimum(w, self.pair_target[place] * self.max_ratio, out=w)

    def _value(self, head: Head, steps: list[Step], batch: Batch, lam: float) -> Tensor:
        """The value, whose gradient goes to ``head``."""
        correct, move = CORRECTIONS[self.labels]
        entropy, value, risk = torch.zeros(3, dtype=self.table.dtype, device=self.table.device)
        for step in steps:
            if step.moves and move is not None and not step.part.whole:
                _, q, log_sum = head.softmax(step.part.points)
                move(self, head, step, q, log_sum)
        for step in steps:
            points = step.part.points
            logits, q, log_sum = head.softmax(points)
            label, coefficient = batch.labels[points].unsqueeze(1), batch.weights[points]
            one = -coefficient.unsqueeze(1)
            entropy = entropy - (one * (log_sum.unsqueeze(1) - logits.gather(1, label))).sum()
            if lam:
                term = correct(self, head, step, logits, q, log_sum)
                value, risk = value + term.value, risk + term.risk
                coefficient = coefficient + lam * term.mass
            if any(head.wanted):
                gradient = q.mul_(coefficient.unsqueeze(1)).scatter_add_(1, label, one)
                head.add(points, term.subtract(gradient, lam) if lam else gradient, 1 / batch.size)
        if lam and self.labels == "seen":
            head.add_outer(self.backoff, -lam / batch.size)
        self.cross_entropy = distributed.mean(entropy / batch.size, self.group)
        self.risk = distributed.mean(risk / batch.size, self.group) if lam else None
        return (entropy + lam * value) / batch.size

    def _steps(self, short: Tensor, counted: Tensor | None, room: int, moves: bool) -> list[Step]:
        """The parts of a batch, and how far each moves the average; nothing has moved yet."""
        steps = []
        for whole in parts(short, room, counted, ordered=True):
            for part in split(whole, room):
                visited = self.visited.index_select(0, part.groups.short)
                some = visited.to(self.table.dtype)
                kept = torch.where(part.begins, some * (1 - self.momentum), 1.0)
                step = torch.where(visited, some * self.momentum, 1.0) / part.total.clamp(min=1)
                counts = None if counted is None else counted[part.points] > 0
                steps.append(Step(part, counts, kept, step, moves))
        return steps

    def _short(self, head: Head, short: Tensor) -> Tensor:
        """Checked (N,) short contexts."""
        short = checks.ids("short", short, self.shape[0], ("hidden", head.hidden))
        checks.same_device("hidden", head.hidden, "the table", self.table)
        checks.shaped("weight", head.weight, self.shape[1], "H", why=", with num_labels rows")
        return checks.shaped("short", short, len(head.hidden), why=" as hidden has rows")
