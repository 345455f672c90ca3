"""Terms that are computed together with the last layer and its cross-entropy, over parts of a
block.
"""

import torch
from torch import Tensor
from typing_extensions import override

from imm_lib import checks
from imm_lib.experiments.language.histories import Histories
from imm_lib.experiments.language.measures import sweep
from imm_lib.experiments.language.models import LanguageModel
from imm_lib.experiments.language.terms import Sampled, Term
from imm_lib.experiments.language.text import Block, Stream
from imm_lib.fused import FusedIMM
from imm_lib.fused_sampled import FusedSampledIMM
from imm_lib.targets import KneserNeyBigram


class _Some(FusedIMM):
    """Variants that are compared with the library's "seen": only some pairs are corrected, and what
    is not has a weight of its own, relative to λ.
    """

    weight = 1.0
    only: Tensor
    pair_target: Tensor

    def __init__(
        self, bigram: KneserNeyBigram, momentum: float, max_ratio: float, only: Tensor, tail: float
    ):
        super().__init__(bigram, *(bigram.vocab_size,) * 2, momentum, max_ratio, labels="seen")
        self.register_buffer("only", torch.cat([only, only[:1]]), persistent=False)
        self.weight = checks.number("tail", tail, 0)
        self._register_pairs()

    @override
    def _register_pairs(self) -> None:
        super()._register_pairs()
        for name in ("pair_tail", "gamma", "unseen"):
            value = self.weight * getattr(self, name)
            self.register_buffer(name, value, persistent=False)

    @override
    def corrected(self, place: Tensor | slice, w: Tensor) -> Tensor:
        uncorrected = self.weight * self.pair_target[place]
        return super().corrected(place, w).where(self.only[place], uncorrected)


def _joint(
    module: FusedIMM, model: LanguageModel, features: Tensor, block: Block, lam: float
) -> tuple[Tensor, Tensor]:
    if not torch.isfinite(features).all():
        return features.sum(), features.detach().sum()  # the run says where it diverged
    labels, short = block.labels.flatten(), block.words.flatten()
    loss = module(features.flatten(0, 1), *model.last_layer, labels, short, lam)
    return loss, checks.tensor("cross_entropy", module.cross_entropy)


class Fused(Term):
    """Moving-average IMM fused with the last layer. The table begins as the induced bigram of the
    model when the term first acts.

    Args:
        bigram, lam, memory, max_ratio: of :class:`MovingAverage`.
        labels: which are corrected: "all", "seen" or "none", as of :class:`imm_lib.FusedIMM`.
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
        size, momentum = bigram.vocab_size, 1 / checks.number("memory", memory, 1)
        self.tail, self.least = tail, least
        if (tail, least) == (1.0, 1):
            self.imm = FusedIMM(bigram, size, size, momentum, max_ratio, labels)
        else:
            words = checks.ids("tokens", tokens)
            # in the order of the bigram's keys
            _, counts = torch.unique(words[:-1] * size + words[1:], return_counts=True)
            self.imm = _Some(bigram, momentum, max_ratio, counts >= least, tail)

    @override
    def begin_epoch(self, model: LanguageModel, stream: Stream, first: bool) -> None:
        if first:
            sweep(self.imm, model, stream)

    @override
    def joint(
        self, model: LanguageModel, features: Tensor, block: Block, lam: float
    ) -> tuple[Tensor, Tensor]:
        return _joint(self.imm, model, features, block, lam)


class FusedSampled(Sampled):
    """Sampled IMM over histories, its log-probabilities and those of the cross-entropy a part at a
    time: the same numbers as of :class:`Sampled`, to rounding. So ``chunk`` bounds features only.
    """

    def __init__(
        self, bigram: KneserNeyBigram, lam: float, histories: Histories, chunk: int = 1400, **rest
    ):
        super().__init__(bigram, lam, histories, chunk=chunk, estimator=FusedSampledIMM, **rest)
        self.plain = FusedIMM(bigram, *(bigram.vocab_size,) * 2, labels="none")

    @override
    def joint(
        self, model: LanguageModel, features: Tensor, block: Block, lam: float
    ) -> tuple[Tensor, Tensor]:
        return _joint(self.plain, model, features, block, 0.0)

    @override
    def risk(self, model: LanguageModel, words: Tensor) -> Tensor:
        return self.imm(self.histories.features(model), words, *model.last_layer)
