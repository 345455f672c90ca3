"""The sampled IMM risk together with the last linear layer, over parts of the drawn contexts."""

import torch
from torch import Tensor

from imm_lib import checks, distributed
from imm_lib.contexts import Contexts
from imm_lib.distributed import Group, checked_group
from imm_lib.estimators import Drawing, Query, Target, checked_contexts
from imm_lib.head import Head, Scratch
from imm_lib.induced import cross_entropy
from imm_lib.targets.table import as_target


class FusedSampledIMM(Drawing):
    """The risk of :class:`imm_lib.SampledIMM` for a model that ends in a linear layer (eqs. 11, 12).

    The risk's gradient by the logits of the k contexts, the cached one of Appendix C.2, is formed
    in the forward pass for a part of them at a time. So the memory for log-probabilities depends
    neither on k nor on the number of labels; that for what ``query`` computes does.

    Args:
        target: (S, Y) table, or callable short -> (B, Y), of the restricted model's probabilities.
        contexts: one of the context classes.
        k: extended contexts drawn per distinct short context.
        generator: source of the samples; torch's default generator by default.
        group: ranks whose batches count as one; see :mod:`imm_lib.distributed`.

    Raises:
        TypeError, ValueError: when built, for a bad target or k; when called, for a bad batch,
            answer of ``query`` or last layer.

    >>> import torch
    >>> from imm_lib import BeliefContexts
    >>> hidden, weight = torch.tensor([[9.0], [1.0]]).log(), torch.tensor([[1.0], [0.0]])
    >>> contexts = BeliefContexts(torch.tensor([[0.5, 0.5]]))
    >>> fused = FusedSampledIMM(torch.tensor([[0.7, 0.3]]), contexts, 1000, torch.Generator().manual_seed(0))
    >>> round(fused(lambda short, extended: hidden[extended], torch.tensor([0]), weight).item(), 2)
    0.61
    """

    risk: Tensor | None

    def __init__(
        self,
        target: Target,
        contexts: Contexts,
        k: int = 10,
        generator: torch.Generator | None = None,
        group: Group = None,
    ):
        super().__init__()
        self.group = checked_group(group)
        self.k, self.generator = checks.count("k", k), checks.generator(generator)
        self.contexts, self.risk = checked_contexts(contexts), None
        self.target = as_target(target, contexts)

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
        hidden = query(asked.repeat_interleave(self.k, dim=0), extended.flatten())
        wide = rows.dtype if rows.dtype == torch.float64 else torch.float32
        head = Head(hidden, weight, bias, wide, Scratch())
        if len(hidden) != extended.numel() or len(weight) != rows.shape[1]:
            raise ValueError(
                f"query(short, extended) must be ({extended.numel()}, H) and weight ({rows.shape[1]}, H), with the "
                f"target's labels, got {checks.describe(hidden)} and {checks.describe(weight)}"
            )
        with torch.no_grad():
            share = count.to(wide) / total
            some = max(1, head.room // self.k)  # short contexts of a part
            risk = share.new_zeros(())
            for begin in range(0, len(asked), some):
                own = slice(begin, begin + some)
                risk = risk + self._part(head, begin, rows[own].to(wide), share[own])
        self.risk = distributed.mean(risk, self.group)
        return head.scalar(risk)

    def _part(self, head: Head, begin: int, target: Tensor, share: Tensor) -> Tensor:
        """The risk of whole short contexts, from ``begin`` on; its gradient goes to ``head``."""
        first, last = begin * self.k, (begin + len(target)) * self.k
        pieces = [slice(a, min(a + head.room, last)) for a in range(first, last, head.room)]
        inverse = torch.arange(first, last, device=share.device) // self.k - begin
        induced = torch.zeros_like(target)
        for piece in pieces:
            q = head.softmax(piece)[1]
            place = inverse[piece.start - first : piece.stop - first]
            induced.index_add_(0, place, q)
        log_induced = induced.div_(self.k).log()
        tiny = torch.finfo(target.dtype).tiny
        scale = target / induced.clamp_(min=tiny) * (share / self.k).unsqueeze(1)
        for piece in pieces if any(head.wanted) else ():
            if len(pieces) > 1:
                q = head.softmax(piece)[1]
            place = inverse[piece.start - first : piece.stop - first]
            w = torch.index_select(scale, 0, place, out=head.scratch("w", len(q))).mul_(q)
            head.add(piece, q.mul_(w.sum(1, keepdim=True)).sub_(w), torch.ones_like(share[0]))
        risk = cross_entropy(target, log_induced)
        return share @ risk.masked_fill_(share == 0, 0.0)
