"""The sampled IMM risk together with the last linear layer, over parts of the drawn contexts."""

from typing import NamedTuple

import torch
from torch import Tensor

from imm_lib import checks, distributed
from imm_lib.contexts import Contexts
from imm_lib.distributed import Group
from imm_lib.estimators import Drawing, Query, Target
from imm_lib.head import Head, Scratch, scratch_of
from imm_lib.induced import cross_entropy
from imm_lib.segments import cuts
from imm_lib.sums import add_rows, inner


class FusedSampledIMM(Drawing):
    """The risk of :class:`imm_lib.SampledIMM` for a model with a linear last layer (eqs. 11, 12).

    The risk's gradient by the logits of the k contexts, the cached one of Appendix C.2, is formed
    in the forward pass for a part of them at a time. So the memory for log-probabilities depends
    neither on k nor on the number of labels; that for what ``query`` computes does.

    An extended context that is drawn twice for a short context is run once and counts twice, where
    that can be seen without making a GPU wait: a random ``query`` gives both the same answer. What
    is left are three products of hidden states and weight per context, two thirds of the cost, and
    ``query`` with its backward pass.

    Args:
        target, contexts, k, generator, group: as of :class:`imm_lib.SampledIMM`.

    Raises:
        TypeError, ValueError: when built, for a bad target or k; when called, for a bad batch,
            answer of ``query`` or last layer.

    >>> import torch
    >>> from imm_lib import BeliefContexts
    >>> hidden, weight = torch.tensor([[9.0], [1.0]]).log(), torch.tensor([[1.0], [0.0]])
    >>> contexts = BeliefContexts(torch.tensor([[0.5, 0.5]]))
    >>> target, draws = torch.tensor([[0.7, 0.3]]), torch.Generator().manual_seed(0)
    >>> fused = FusedSampledIMM(target, contexts, 1000, draws)
    >>> round(fused(lambda short, extended: hidden[extended], torch.tensor([0]), weight).item(), 2)
    0.61
    """

    def __init__(
        self,
        target: Target,
        contexts: Contexts,
        k: int = 10,
        generator: torch.Generator | None = None,
        group: Group = None,
    ):
        super().__init__(target, contexts, k, generator, group=group)
        self.memory = Scratch()

    def forward(
        self, query: Query, short: Tensor, weight: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        """Mean risk over the batch, in nats.

        Args:
            query: (N,) or (N, d) short contexts, (N,) extended contexts -> (N, H) features.
            short: (B,) or (B, d) short contexts of the batch.
            weight: (Y, H) of the last layer.
            bias: (Y,) of the last layer, or None.
        """
        asked, rows, extended, count, total = self.draw(short)
        drawn = _distinct(extended)
        hidden = checks.answer(query, asked.index_select(0, drawn.owner), drawn.extended)
        wide = rows.dtype if rows.dtype == torch.float64 else torch.float32
        head = Head(hidden, weight, bias, wide, scratch_of(self.memory, hidden))
        checks.shaped("query(short, extended)", hidden, len(drawn.owner), "H")
        checks.shaped("weight", weight, rows.shape[1], "H", why=", with the target's labels")
        with torch.no_grad():
            share = count.to(wide) / total
            risk = share.new_zeros(())
            for groups, points in cuts(drawn.ends, head.room):
                owner = drawn.owner[points] - groups.start
                weight = drawn.times[points].to(wide).div_(self.k).unsqueeze(1)
                own = rows[groups].to(wide), share[groups]
                risk = risk + _risk(head, points, owner, weight, *own)
        self.risk = distributed.mean(risk, self.group)
        return head.scalar(risk)


class _Drawn(NamedTuple):
    """N extended contexts of D short ones, those of a short context side by side."""

    extended: Tensor  # (N,)
    owner: Tensor  # (N,) the short context
    times: Tensor  # (N,) how often each was drawn
    ends: list[int]  # (D,) one behind the last context of each


def _distinct(extended: Tensor) -> _Drawn:
    """(D, k) extended contexts, each once for its short context if values may be looked at."""
    size, k = extended.shape
    owner = torch.arange(size, device=extended.device).repeat_interleave(k)
    if not checks.visible(extended):
        ends = list(range(k, size * k + 1, k))
        return _Drawn(extended.flatten(), owner, torch.ones_like(owner), ends)
    most = int(extended.amax()) + 1
    keys, times = torch.unique(owner * most + extended.flatten(), return_counts=True)
    owner = keys // most
    return _Drawn(keys % most, owner, times, owner.bincount().cumsum(0).tolist())


def _risk(
    head: Head, points: slice, owner: Tensor, weight: Tensor, target: Tensor, share: Tensor
) -> Tensor:
    """The risk of whole short contexts, the ``owner`` (n,) of extended ones that have a ``weight``
    (n, 1); its gradient goes to ``head``.
    """
    size, room = points.stop - points.start, head.room
    pieces = [slice(begin, min(begin + room, size)) for begin in range(0, size, room)]

    def probabilities(own: slice) -> Tensor:
        """Weighted."""
        found = slice(points.start + own.start, points.start + own.stop)
        return head.probabilities(found).mul_(weight[own])

    induced = torch.zeros_like(target)
    for own in pieces:
        q = probabilities(own)
        add_rows(induced, owner[own], q)
    log_induced = induced.log()
    tiny = torch.finfo(target.dtype).tiny
    scale = target / induced.clamp_(min=tiny) * share.unsqueeze(1)
    for own in pieces if any(head.wanted) else ():
        if len(pieces) > 1:
            q = probabilities(own)
        w = torch.index_select(scale, 0, owner[own], out=head.scratch("w", len(q))).mul_(q)
        mass = w.sum(1, keepdim=True).div_(weight[own])
        found = slice(points.start + own.start, points.start + own.stop)
        head.add(found, q.mul_(mass).sub_(w), torch.ones_like(share[0]))
    risk = cross_entropy(target, log_induced)
    return inner(share, risk.masked_fill_(share == 0, 0.0))
