"""Terms that are computed together with the last layer and its cross-entropy, over parts of a
block.
"""

import torch
from torch import Tensor
from typing_extensions import override

from imm_lib import checks
from imm_lib.experiments.language.histories import read
from imm_lib.experiments.language.models import LanguageModel
from imm_lib.experiments.language.terms import Term
from imm_lib.experiments.language.text import Block, Stream
from imm_lib.fused import FusedIMM
from imm_lib.targets import KneserNeyBigram


class _Some(FusedIMM):
    """Variants that are compared with the library's: pairs that occur more often alone are
    corrected, and the tail has a weight of its own.
    """

    def __init__(self, *sizes, corrected: Tensor, tail: float, **rest):
        super().__init__(*sizes, labels="seen", **rest)
        self.tail = checks.number("tail", tail, 0)
        self.register_buffer("corrected", corrected, persistent=False)

    @override
    def _pairs(self, part):
        pairs = super()._pairs(part)
        kept = self.corrected[pairs.place]
        return type(pairs)(*(field[kept] for field in pairs))

    @override
    def _tail(self, part, pairs, out):
        out.copy_(self._rows(part)).view(-1).index_add_(0, pairs.flat, -pairs.target)
        out.mul_(self.tail)


def _counts(tokens: Tensor, size: int) -> Tensor:
    """(pairs,) how often each pair of neighbours occurs, in the order of a bigram's keys."""
    return torch.unique(tokens[:-1] * size + tokens[1:], return_counts=True)[1]


class Fused(Term):
    """Moving-average IMM fused with the last layer. The table begins as the induced bigram of the
    model when the term first acts.

    Args:
        bigram: the target.
        lam: λ.
        labels: which are corrected: "all", "seen" or "none", as of :class:`imm_lib.FusedIMM`.
        memory: blocks with a word after which its row has forgotten all but 1/e; the momentum is
            1 / memory.
        max_ratio: largest correction Q / Q̂.
        tail: λ of labels that are not corrected, over λ; with "seen".
        least: occurrences in ``tokens`` that a pair needs to be corrected; with "seen".
        tokens: the text of the bigram, which is counted for ``least``.
    """

    def __init__(
        self,
        bigram: KneserNeyBigram,
        lam: float,
        labels: str = "seen",
        memory: float = 10,
        max_ratio: float = 10.0,
        tail: float = 1.0,
        least: int = 1,
        tokens: Tensor | None = None,
    ):
        super().__init__(lam)
        sizes, momentum = (bigram.vocab_size,) * 2, 1 / checks.number("memory", memory, 1)
        self.tail, self.least = tail, least
        if (tail, least) == (1.0, 1):
            self.imm = FusedIMM(bigram, *sizes, momentum, max_ratio, labels)
        else:
            corrected = _counts(tokens, sizes[0]) >= least
            options = {"corrected": corrected, "tail": tail, "max_ratio": max_ratio}
            self.imm = _Some(bigram, *sizes, momentum, **options)

    @override
    def begin_epoch(self, model: LanguageModel, stream: Stream, first: bool) -> None:
        if first:
            blocks = read(model, stream)
            pairs = ((found.flatten(0, 1), block.words.flatten()) for block, found in blocks)
            self.imm.refresh(pairs, *model.last_layer)

    @override
    def joint(
        self, model: LanguageModel, features: Tensor, block: Block, lam: float
    ) -> tuple[Tensor, Tensor]:
        if not torch.isfinite(features).all():
            return features.sum(), features.detach().sum()  # the run says where it diverged
        labels, short = block.labels.flatten(), block.words.flatten()
        loss = self.imm(features.flatten(0, 1), *model.last_layer, labels, short, lam)
        return loss, self.imm.cross_entropy
