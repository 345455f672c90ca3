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
from imm_lib.baselines import ReverseKD
from imm_lib.estimators import SampledIMM, Target
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

    def drawn(self, values: Tensor, count: int) -> Tensor:
        """(count,) of (n,) values, with replacement."""
        places = torch.randint(len(values), (count,), generator=self.generator)
        return values[places.to(values.device)]


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
        before, after, count = (
            torch.bincount(words, minlength=vocab_size)
            for words in (pairs // vocab_size, pairs % vocab_size, tokens[:-1])
        )
        rate = (gamma * before / count.clamp(min=1)).float()
        self.register_buffer("rate", rate, persistent=False)
        self.register_buffer("proposal", after.float(), persistent=False)

    @override
    def labels(self, block: Block) -> Tensor:
        shape, device = block.labels.shape, block.labels.device
        noised = torch.rand(shape, generator=self.generator).to(device) < self.rate[block.words]
        drawn = torch.multinomial(
            self.proposal.cpu(), shape.numel(), replacement=True, generator=self.generator
        )
        return torch.where(noised, drawn.view(shape).to(device), block.labels)


class Shared(Term):
    """One of the library's estimators on the pass of the cross-entropy, dropout and all.

    Args:
        imm: (N, V) log-probabilities, (N, ...) short contexts -> a scalar.
        lam: λ.
    """

    def __init__(self, imm: nn.Module, lam: float):
        super().__init__(lam)
        self.imm = imm

    def short(self, block: Block) -> Tensor:
        """(B T, ...) the block's short contexts, the previous words."""
        return block.words.flatten()

    @override
    def shared(self, log_q: Tensor, block: Block) -> Tensor:
        return self.imm(log_q.flatten(0, 1), self.short(block))


class Uncorrected(Shared):
    """Reverse distillation: the target against the full model itself."""

    def __init__(self, target: Target, lam: float):
        super().__init__(ReverseKD(target), lam)


class MovingAverage(Shared):
    """Moving-average IMM. The table begins as the induced bigram of the model when the term first
    acts.

    Args:
        bigram: the target.
        lam: λ.
        memory: blocks with a word after which its row has forgotten all but 1/e; the momentum is
            1 / memory.
        max_ratio: largest correction Q / Q̂.
        lag: words between the short context and the predicted word; at 1 the target is a
            skip-bigram.
    """

    def __init__(
        self,
        bigram: KneserNeyBigram,
        lam: float,
        memory: float = 10,
        max_ratio: float = 10.0,
        lag: int = 0,
    ):
        sizes, momentum = (bigram.vocab_size,) * 2, 1 / checks.number("memory", memory, 1)
        super().__init__(MovingAverageIMM(bigram, *sizes, momentum, max_ratio), lam)
        self.bigram, self.lag = bigram, lag and checks.count("lag", lag)

    @override
    def begin_epoch(self, model: LanguageModel, stream: Stream, first: bool) -> None:
        if first:
            self.imm.load_state_dict(induced(model, stream, self.bigram, self.lag).state_dict())

    @override
    def short(self, block: Block) -> Tensor:
        return block.short(self.lag).flatten()


class Serialized(Shared):
    """Serialized IMM; Q† is the model as it was before the pass over the text, without dropout, and
    Q̂† its bigram.
    """

    frozen: tuple[LanguageModel]  # both from the beginning of an epoch
    frozen_state: Tensor

    def __init__(self, bigram: KneserNeyBigram, lam: float):
        super().__init__(SerializedIMM(bigram, bigram.vocab_size, bigram.vocab_size), lam)
        self.bigram = bigram

    @override
    def begin_epoch(self, model: LanguageModel, stream: Stream, first: bool) -> None:
        self.imm.load_state_dict(induced(model, stream, self.bigram).state_dict())
        # in a tuple, since a submodule would belong to the term's own parameters and state
        self.frozen = (copy.deepcopy(model).eval(),)
        self.frozen_state = model.begin(stream.batch)

    @override
    def shared(self, log_q: Tensor, block: Block) -> Tensor:
        with torch.no_grad():
            frozen, self.frozen_state = self.frozen[0](block.words, self.frozen_state)
        return self.imm(log_q.flatten(0, 1), self.short(block), frozen.flatten(0, 1))


class OwnPass(Term):
    """A term on a pass of its own, without dropout, instead of the cross-entropy's."""

    state: Tensor  # from the beginning of an epoch

    def __init__(self, term: Shared):
        super().__init__(term.lam)
        self.term = term

    @override
    def begin_epoch(self, model: LanguageModel, stream: Stream, first: bool) -> None:
        self.term.begin_epoch(model, stream, first)
        self.state = model.begin(stream.batch)

    @override
    def own(self, model: LanguageModel, block: Block) -> Iterator[Tensor]:
        with without_dropout(model):
            log_q, state = model(block.words, self.state)
        self.state = state.detach()
        yield self.term.shared(log_q, block)


class Several(Term):
    """A sum of terms that share the pass of the cross-entropy, each with its own λ.

    Raises:
        ValueError: no terms, or one that makes passes of its own.
    """

    def __init__(self, terms: Sequence[Term]):
        super().__init__(1.0)
        self.parts = [term for term in terms if isinstance(term, Shared)]
        if len(self.parts) < max(1, len(terms)):
            own = [type(term).__name__ for term in terms if not isinstance(term, Shared)]
            raise ValueError(
                f"terms must share the pass of the cross-entropy, at least one, got {own or 'none'}"
            )
        self.terms = nn.ModuleList(self.parts)

    @override
    def begin_epoch(self, model: LanguageModel, stream: Stream, first: bool) -> None:
        for term in self.parts:
            term.begin_epoch(model, stream, first)

    @override
    def shared(self, log_q: Tensor, block: Block) -> Tensor:
        return reduce(torch.add, [term.lam * term.shared(log_q, block) for term in self.parts])


class Sampled(_Random):
    """Sampled IMM over histories that are run again, without dropout.

    Args:
        target: of the histories' short contexts.
        lam: λ.
        histories: where extended contexts come from.
        k: extended contexts of a distinct word.
        words: words drawn from the block's for each step, with replacement; 0 takes all of the
            block.
        chunk: extended contexts in memory at a time, of whole words; what bounds the memory
            whatever k is.
        with_dropout: keep dropout in the term's passes; an ablation.
        seed: of the draws.
        estimator: of the risk; :class:`imm_lib.SampledNoising` leaves the passes and drops IMM.
    """

    def __init__(
        self,
        target: Target,
        lam: float,
        histories: Histories,
        k: int = 10,
        words: int = 70,
        chunk: int = 350,
        with_dropout: bool = False,
        seed: int = 0,
        estimator: type[nn.Module] = SampledIMM,
    ):
        super().__init__(lam, seed)
        self.histories, self.with_dropout = histories, with_dropout
        self.imm = estimator(target, histories.contexts, k, generator=self.generator)
        self.words = words if words == 0 else checks.count("words", words)
        self.group = max(1, checks.count("chunk", chunk) // k)  # distinct words

    @override
    def begin_epoch(self, model: LanguageModel, stream: Stream, first: bool) -> None:
        self.histories.refresh(model)

    def risk(self, model: LanguageModel, words: Tensor) -> Tensor:
        """A scalar, the mean over (n,) words."""
        return self.imm(self.histories.query(model), words)

    @override
    def own(self, model: LanguageModel, block: Block) -> Iterator[Tensor]:
        # a word is drawn as often as it occurs, so that the mean over draws is that over the block
        words = block.words.flatten()
        words = (self.drawn(words, self.words) if self.words else words).sort().values
        # crosstalk couples contexts of one word alone, so that parts of whole words add up exactly
        for group in words.unique().split(self.group):
            part = words[torch.isin(words, group)]
            with contextlib.nullcontext() if self.with_dropout else without_dropout(model):
                term = self.risk(model, part)
            yield term * (len(part) / len(words))


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
                log_q = query(words.repeat_interleave(self.k), places.flatten())
                risk = imm_risk(self.bigram(words), log_q.unflatten(0, (-1, self.k)))
                yield risk.sum() / block.words.numel()
            with torch.no_grad():
                _, self.state = model.hidden(block.words, self.state)
