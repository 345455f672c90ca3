"""What each method adds to the cross-entropy of a block of text: nothing, noised labels, or a term
weighted by λ.

A term works in one of two ways. ``shared`` uses the log-probabilities of the block that the
cross-entropy has just computed; ``own`` runs the model itself, and gives one part after another to
differentiate, so that the memory of a part is free before the next. Both are means over the block's
words.
"""

import contextlib
import copy
from collections.abc import Iterator, Sequence
from functools import reduce

import torch
from torch import Tensor, nn
from typing_extensions import override

from imm_lib import checks
from imm_lib.baselines import ReverseKD, SampledNoising
from imm_lib.estimators import SampledIMM
from imm_lib.experiments.language.histories import Histories
from imm_lib.experiments.language.measures import induced
from imm_lib.experiments.language.models import LanguageModel
from imm_lib.experiments.language.text import Block, Stream
from imm_lib.experiments.training import without_dropout
from imm_lib.induced import imm_risk
from imm_lib.surrogates import MovingAverageIMM, SerializedIMM
from imm_lib.targets import KneserNeyBigram


class Term(nn.Module):
    """The base class, which adds nothing: the baseline. ``lam`` is λ."""

    def __init__(self, lam: float = 0.0):
        super().__init__()
        self.lam = checks.number("lam", lam, 0)

    def begin_epoch(self, model: LanguageModel, stream: Stream, first: bool) -> None:
        """Called before each pass in which the term acts; ``first`` before the first of them."""

    def labels(self, block: Block) -> Tensor:
        """(B, T) the labels of the cross-entropy."""
        return block.labels

    def shared(self, log_q: Tensor, block: Block) -> Tensor | None:
        """A scalar from the block's (B, T, V) log-probabilities."""
        return None

    def own(self, model: LanguageModel, block: Block) -> Iterator[Tensor]:
        """Scalars that add up to the term, from passes of the term's own."""
        return iter(())

    def joint(
        self, model: LanguageModel, features: Tensor, block: Block, lam: float
    ) -> tuple[Tensor, Tensor] | None:
        """Cross-entropy + lam times what the term adds here, and the first of the two, detached,
        from the block's (B, T, H) features; None where the two are computed apart. What ``own``
        gives comes on top.
        """
        return None


class _Random(Term):
    """A term with draws of its own, whose generator is part of ``state_dict``."""

    def __init__(self, lam: float, seed: int):
        super().__init__(lam)
        self.generator = torch.Generator().manual_seed(seed)

    def get_extra_state(self) -> Tensor:
        return self.generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        self.generator.set_state(state.cpu())


class Noising(_Random):
    """Kneser-Ney noising of the predicted words (Xie et al. 2017).

    With probability γ0 N₁₊(x,·)/c(x) after the word x, the label is drawn from q(y) ∝ N₁₊(·,y),
    where N₁₊ counts distinct neighbours in ``tokens`` and c occurrences.
    """

    rate: Tensor
    proposal: Tensor

    def __init__(self, tokens: Tensor, vocab_size: int, gamma: float = 0.2, seed: int = 0):
        super().__init__(0.0, seed)
        gamma = checks.number("gamma", gamma, 0, 1)
        pairs = torch.unique(tokens[:-1] * vocab_size + tokens[1:])
        followers = torch.bincount(pairs // vocab_size, minlength=vocab_size)
        count = torch.bincount(tokens[:-1], minlength=vocab_size).clamp(min=1)
        self.register_buffer("rate", (gamma * followers / count).float(), persistent=False)
        self.register_buffer(
            "proposal",
            torch.bincount(pairs % vocab_size, minlength=vocab_size).float(),
            persistent=False,
        )

    @override
    def labels(self, block: Block) -> Tensor:
        shape, device = block.labels.shape, block.labels.device
        noised = torch.rand(shape, generator=self.generator).to(device) < self.rate[block.words]
        drawn = torch.multinomial(
            self.proposal.cpu(), shape.numel(), replacement=True, generator=self.generator
        )
        return torch.where(noised, drawn.view(shape).to(device), block.labels)


class _OnePass(Term):
    """A term from one pass over the block: that of the cross-entropy, dropout and all, or one of
    its own without.
    """

    state: Tensor  # of the pass without dropout, from the beginning of an epoch

    def __init__(self, lam: float, own_pass: bool):
        super().__init__(lam)
        self.own_pass = own_pass

    def loss(self, log_q: Tensor, block: Block) -> Tensor:
        """The term from the block's (B, T, V) log-probabilities."""
        raise NotImplementedError

    @override
    def begin_epoch(self, model: LanguageModel, stream: Stream, first: bool) -> None:
        self.state = model.begin(stream.batch)

    @override
    def shared(self, log_q: Tensor, block: Block) -> Tensor | None:
        return None if self.own_pass else self.loss(log_q, block)

    @override
    def own(self, model: LanguageModel, block: Block) -> Iterator[Tensor]:
        if self.own_pass:
            with without_dropout(model):
                log_q, state = model(block.words, self.state)
            self.state = state.detach()
            yield self.loss(log_q, block)


class Uncorrected(_OnePass):
    """Reverse distillation: the target against the full model itself.

    Args:
        bigram: the target.
        lam: λ.
        own_pass: make a second pass without dropout instead of using that of the cross-entropy.
    """

    def __init__(self, bigram: KneserNeyBigram, lam: float, own_pass: bool = False):
        super().__init__(lam, own_pass)
        self.imm = ReverseKD(bigram)

    @override
    def loss(self, log_q: Tensor, block: Block) -> Tensor:
        return self.imm(log_q.flatten(0, 1), block.words.flatten())


class MovingAverage(_OnePass):
    """Moving-average IMM. The table begins as the induced bigram of the model when the term first
    acts.

    Args:
        bigram: the target.
        lam: λ.
        memory: blocks with a word after which its row has forgotten all but 1/e; the momentum is 1
        / memory.
        max_ratio: largest correction Q / Q̂.
        own_pass: as of :class:`Uncorrected`.
        lag: words between the short context and the predicted word; at 1 the target is a
            skip-bigram.
    """

    text: Tensor  # from the beginning of an epoch

    def __init__(
        self,
        bigram: KneserNeyBigram,
        lam: float,
        memory: float = 10,
        max_ratio: float = 10.0,
        own_pass: bool = False,
        lag: int = 0,
    ):
        super().__init__(lam, own_pass)
        size = bigram.vocab_size
        self.bigram, self.lag = bigram, 0 if lag == 0 else checks.count("lag", lag)
        self.imm = MovingAverageIMM(
            bigram, size, size, 1 / checks.number("memory", memory, 1), max_ratio
        )

    @override
    def begin_epoch(self, model: LanguageModel, stream: Stream, first: bool) -> None:
        super().begin_epoch(model, stream, first)
        self.text = stream.words
        if first:
            self.imm.load_state_dict(induced(model, stream, self.bigram, self.lag).state_dict())

    @override
    def loss(self, log_q: Tensor, block: Block) -> Tensor:
        return self.imm(log_q.flatten(0, 1), block.short(self.text, self.lag).flatten())


class Several(Term):
    """A sum of terms that share the pass of the cross-entropy, each with its own λ.

    Raises:
        ValueError: no terms, or one that makes passes of its own.
    """

    def __init__(self, terms: Sequence[Term]):
        super().__init__(1.0)
        own = [type(term).__name__ for term in terms if getattr(term, "own_pass", True)]
        if own or not terms:
            raise ValueError(
                f"terms must share the pass of the cross-entropy, at least one, got {own or 'none'}"
            )
        self.terms = nn.ModuleList(terms)

    def _terms(self) -> list[Term]:
        return [term for term in self.terms if isinstance(term, Term)]

    @override
    def begin_epoch(self, model: LanguageModel, stream: Stream, first: bool) -> None:
        for term in self._terms():
            term.begin_epoch(model, stream, first)

    @override
    def shared(self, log_q: Tensor, block: Block) -> Tensor | None:
        parts = [(term.lam, term.shared(log_q, block)) for term in self._terms()]
        return reduce(torch.add, [lam * part for lam, part in parts if part is not None])


class Serialized(_OnePass):
    """Serialized IMM; Q† is the model as it was before the pass over the text, without dropout, and
    Q̂† its bigram.

    Args:
        bigram: the target.
        lam: λ.
        own_pass: as of :class:`Uncorrected`.
    """

    frozen: tuple[LanguageModel]  # both from the beginning of an epoch
    frozen_state: Tensor

    def __init__(self, bigram: KneserNeyBigram, lam: float, own_pass: bool = False):
        super().__init__(lam, own_pass)
        self.imm = SerializedIMM(bigram, bigram.vocab_size, bigram.vocab_size)
        self.bigram = bigram

    @override
    def begin_epoch(self, model: LanguageModel, stream: Stream, first: bool) -> None:
        super().begin_epoch(model, stream, first)
        self.imm.load_state_dict(induced(model, stream, self.bigram).state_dict())
        # in a tuple, since a submodule would belong to the term's own parameters and state
        self.frozen = (copy.deepcopy(model).eval(),)
        self.frozen_state = model.begin(stream.batch)

    @override
    def loss(self, log_q: Tensor, block: Block) -> Tensor:
        with torch.no_grad():
            frozen, self.frozen_state = self.frozen[0](block.words, self.frozen_state)
        return self.imm(log_q.flatten(0, 1), block.words.flatten(), frozen.flatten(0, 1))


class Sampled(_Random):
    """Sampled IMM over histories that are run again, without dropout.

    Args:
        bigram: the target.
        lam: λ.
        histories: where extended contexts come from.
        k: extended contexts of a distinct word.
        words: words drawn from the block's for each step, with replacement; 0 takes all of the
        block.
        chunk: extended contexts in memory at a time, of whole words; what bounds the memory
        whatever k is.
        with_dropout: keep dropout in the term's passes; an ablation.
        seed: of the draws.
    """

    _estimator: type[nn.Module] = SampledIMM

    def __init__(
        self,
        bigram: KneserNeyBigram,
        lam: float,
        histories: Histories,
        k: int = 10,
        words: int = 70,
        chunk: int = 350,
        with_dropout: bool = False,
        seed: int = 0,
    ):
        super().__init__(lam, seed)
        self.histories, self.with_dropout = histories, with_dropout
        self.imm = self._estimator(bigram, histories.contexts, k, generator=self.generator)
        self.words = words if words == 0 else checks.count("words", words)
        self.group = max(1, checks.count("chunk", chunk) // k)  # distinct words

    @override
    def begin_epoch(self, model: LanguageModel, stream: Stream, first: bool) -> None:
        self.histories.refresh(model)

    def _risk(self, model: LanguageModel, words: Tensor) -> Tensor:
        return self.imm(self.histories.query(model), words)

    @override
    def own(self, model: LanguageModel, block: Block) -> Iterator[Tensor]:
        drawn = block.words.flatten()
        if self.words:
            # a word is drawn as often as it occurs, so that the mean over draws is the mean over
            # the block
            drawn = drawn[
                torch.randint(len(drawn), (self.words,), generator=self.generator).to(drawn.device)
            ]
        drawn = drawn.sort().values
        # crosstalk couples contexts of one word alone, so that parts of whole words add up exactly
        for group in drawn.unique().split(self.group):
            part = drawn[torch.isin(drawn, group)]
            with contextlib.nullcontext() if self.with_dropout else without_dropout(model):
                term = self._risk(model, part)
            yield term * (len(part) / len(drawn))


class Published(_Random):
    """The published program's way with sampled contexts: k histories of every place of the block,
    run again in full.

    They begin from the state that the model had before the block, of a text that is not theirs, and
    equal words share nothing. (The program does so on every fifth block, and with one history, that
    of the block, on the others.)

    Args:
        bigram: the target.
        lam: λ.
        histories: extended contexts without a cache; their ``steps`` are the words of a history.
        k: histories of each place.
        seed: of the draws.
    """

    state: Tensor  # from the beginning of an epoch

    def __init__(
        self, bigram: KneserNeyBigram, lam: float, histories: Histories, k: int = 10, seed: int = 0
    ):
        super().__init__(lam, seed)
        self.bigram, self.histories, self.k = bigram, histories, checks.count("k", k)

    @override
    def begin_epoch(self, model: LanguageModel, stream: Stream, first: bool) -> None:
        self.state = model.begin(stream.batch)

    @override
    def own(self, model: LanguageModel, block: Block) -> Iterator[Tensor]:
        with without_dropout(model):
            query = self.histories.query(model, self.state.repeat_interleave(self.k, 0))
            for words in block.words.unbind(1):
                places = self.histories.contexts.sample(words, self.k, self.generator)
                log_q = query(words.repeat_interleave(self.k), places.flatten()).unflatten(
                    0, (-1, self.k)
                )
                yield imm_risk(self.bigram(words), log_q).sum() / block.words.numel()
            with torch.no_grad():
                _, self.state = model.hidden(block.words, self.state)


class SampledUncorrected(Sampled):
    """The same passes with the target against the model itself in each history: :class:`Sampled`
    without IMM.
    """

    _estimator = SampledNoising
