"""The modified Kneser-Ney bigram: the restricted model of the language experiments, stored
sparsely.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor

from imm_lib import checks
from imm_lib.precision import KeepsPrecision

BLOCK = 35
"""Words per block of the paper's evaluation, its unroll length."""


def discounts(counts: Tensor) -> tuple[float, float, float]:
    """Chen and Goodman's discounts D1, D2, D3+ from how many bigrams occur once, twice, three and
    four times.

    Where a corpus is too small for the estimate, all three are n1 / (n1 + 2 n2), the absolute
    discount, or 0.5 where even that is not inside (0, 1). It is too small if one of the four is 0,
    a discount is not above 0, or a bigram that occurs more often would not keep more of its count:
    0 < 1 - D1 < 2 - D2 < 3 - D3+ has to hold.

    Args:
        counts: (N,) occurrences of each distinct bigram.

    >>> discounts(torch.tensor([1, 1, 1, 1, 2, 2, 3, 4]))
    (0.5, 1.25, 1.0)
    """
    n1, n2, n3, n4 = ((counts == c).sum().item() for c in (1, 2, 3, 4))
    absolute = n1 / (n1 + 2 * n2) if n1 else 0.0
    if n1 and n2 and n3 and n4:
        estimate = (
            1 - 2 * absolute * n2 / n1,
            2 - 3 * absolute * n3 / n2,
            3 - 4 * absolute * n4 / n3,
        )
        kept = [0.0, *(count - d for count, d in zip((1, 2, 3), estimate, strict=True))]
        if min(estimate) > 0 and all(less < more for less, more in pairwise(kept)):
            return estimate
    return (absolute,) * 3 if 0 < absolute < 1 else (0.5,) * 3


class KneserNeyBigram(KeepsPrecision):
    """P̂(y|x) = max(c(x,y) - D, 0) / c(x) + γ(x) b(y), with b from continuation counts (Kneser &
    Ney; Chen & Goodman).

    b(y) counts the distinct words that precede y. A known word that none precedes (the first word
    of a corpus may be one, and every word that a small corpus lacks) would have probability 0
    everywhere; it counts as half a continuation, so that every known word has positive probability.
    Together such words count at most as much as the words that one word precedes, Good and Turing's
    estimate of what is yet to be seen, so that a large vocabulary does not take the back-off from
    the words of the text. A word that nothing follows has b as its row.

    Build it with :meth:`fit` or :meth:`fit_pairs`. Called with (B,) ids it gives (B, V) float32
    probabilities, so that it serves as the target of every estimator. Stored are the distinct
    bigrams only: 12 bytes each, and 24 a word.

    Buffers (not in ``state_dict``, since fitting again is quicker than reading them): ``keys`` (N,)
    sorted x V + y; ``values`` (N,) discounted relative counts; ``starts`` (V + 1,); ``gamma`` (V,);
    ``backoff`` (V,).

    >>> model = KneserNeyBigram.fit(torch.tensor([0, 1, 2, 0, 1, 0, 2, 2, 1]), vocab_size=3)
    >>> model(torch.tensor([0])).sum().item()
    1.0
    """

    keys: Tensor
    starts: Tensor
    values: Tensor
    gamma: Tensor
    backoff: Tensor

    def __init__(
        self,
        keys: Tensor,
        values: Tensor,
        gamma: Tensor,
        backoff: Tensor,
        d: tuple[float, float, float],
    ):
        super().__init__()
        self.vocab_size, self.discounts = len(backoff), d
        rows = torch.arange(len(backoff) + 1, device=keys.device) * len(backoff)
        starts = torch.searchsorted(keys, rows)
        self.longest = int(starts.diff().max())
        self.hold(keys=keys, starts=starts, values=values.float())
        self.hold(gamma=gamma.float(), backoff=backoff.float())

    @classmethod
    def fit(cls, tokens: Tensor, vocab_size: int) -> "KneserNeyBigram":
        """Count, discount and back off, by one sort of the corpus's bigrams.

        Args:
            tokens: (n,) ids of a text, n >= 2; every two neighbours are a bigram.
            vocab_size: number V of words.

        Raises:
            TypeError: ``tokens`` is not an integer tensor, or ``vocab_size`` not an int.
            ValueError: fewer than two tokens, ids outside [0, vocab_size), or vocab_size < 1.
        """
        tokens = checks.ids("tokens", tokens, checks.count("vocab_size", vocab_size))
        if len(tokens) < 2:
            raise ValueError(f"tokens must hold at least 2 ids, got {checks.describe(tokens)}")
        return cls.fit_pairs(tokens[:-1], tokens[1:], vocab_size)

    @classmethod
    def fit_pairs(cls, short: Tensor, label: Tensor, vocab_size: int) -> "KneserNeyBigram":
        """:meth:`fit` of given bigrams: for a text of sentences, whose ends say nothing of the next
        one's beginning.

        Args:
            short: (N,) ids of the first words, N >= 1.
            label: (N,) ids of the words that follow them.
            vocab_size: number V of words.

        Raises:
            TypeError: an argument is not an integer tensor, or ``vocab_size`` not an int.
            ValueError: no pair, arguments of different lengths or devices, ids outside [0,
                vocab_size), or vocab_size < 1.

        >>> text = torch.tensor([0, 1, 2, 0, 1])
        >>> pairs = KneserNeyBigram.fit_pairs(text[:-1], text[1:], vocab_size=3)
        >>> torch.equal(pairs.dense(), KneserNeyBigram.fit(text, vocab_size=3).dense())
        True
        """
        vocab_size = checks.count("vocab_size", vocab_size)
        if vocab_size > 2**31:
            raise ValueError(f"vocab_size must be at most 2^31, got {vocab_size}: keys are int64")
        short = checks.held("short", checks.ids("short", short, vocab_size))
        label = checks.ids("label", label, vocab_size, ("short", short))
        checks.shaped("label", label, len(short), why=", as long as short")
        keys, counts = torch.unique(short * vocab_size + label, return_counts=True)
        counted = checks.double("short", counts)
        left, right = keys // vocab_size, keys % vocab_size
        d = discounts(counts)
        total = torch.zeros(vocab_size, dtype=torch.float64, device=keys.device).index_add_(
            0, left, counted
        )
        removed = counts.new_tensor([0.0, *d], dtype=torch.float64)[counts.clamp(max=3)]
        # a word that nothing follows keeps no mass of its own: all of it backs off
        gamma = torch.where(
            total > 0, torch.zeros_like(total).index_add_(0, left, removed) / total, 1.0
        )
        continuations = torch.bincount(right, minlength=vocab_size).double()
        orphan, single = continuations == 0, (continuations == 1).sum()
        share = (single.clamp(min=0.5) / orphan.sum().clamp(min=1)).clamp(max=0.5)
        continuations = torch.where(orphan, share, continuations)
        return cls(
            keys, (counts - removed) / total[left], gamma, continuations / continuations.sum(), d
        )

    def forward(self, short: Tensor) -> Tensor:
        """(B,) ids of the previous word -> (B, V) probabilities of the next; raises as
        ``log_prob``.
        """
        short = self._ids("short", short)
        row, place, real = self.entries(short)
        rows = self.gamma[short].unsqueeze(1) * self.backoff
        column = self.keys.index_select(0, place).remainder_(self.vocab_size)
        flat = column.add_(row, alpha=self.vocab_size)
        # (row, column) pairs are distinct, but for added zeros, so an unordered addition is exact
        values = self.values.index_select(0, place)
        rows.view(-1).index_add_(0, flat, values if real is None else values * real)
        return rows

    def entries(self, short: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """The stored bigrams of (B,) words, unchecked: ``row`` (K,) into ``short``, ``place`` (K,)
        into ``keys`` and ``values``, and ``real`` (K,), which of them are there; None if all are.

        Where looking at the values would make a GPU wait, every word has as many as the word with
        the most.
        """
        first, count = self.starts[short], self.starts[short + 1] - self.starts[short]
        if checks.visible(short):
            row = torch.repeat_interleave(count)
            shift = first - (count.cumsum(0) - count)
            # index_select is thrice as fast here as indexing by []
            place = torch.arange(len(row), device=row.device).add_(shift.index_select(0, row))
            return row, place, None
        within = torch.arange(self.longest, device=short.device)
        place = (first.unsqueeze(1) + within).clamp(max=len(self.keys) - 1)
        row = torch.arange(len(short), device=short.device).unsqueeze(1).expand_as(place)
        return row.flatten(), place.flatten(), (within < count.unsqueeze(1)).flatten()

    def log_prob(self, short: Tensor, label: Tensor) -> Tensor:
        """(B,) previous words, (B,) next words -> (B,) float64 log-probabilities in nats, without
        building rows.

        Raises:
            TypeError: an argument is not an integer tensor.
            ValueError: ids out of range, another device, or arguments of different lengths.
        """
        short, label = self._ids("short", short), self._ids("label", label)
        checks.shaped("label", label, len(short), why=", as long as short")
        key = short * self.vocab_size + label
        place = torch.searchsorted(self.keys, key).clamp(max=len(self.keys) - 1)
        seen = torch.where(self.keys[place] == key, self.values[place], 0.0)
        wide = checks.wide(seen.device)
        return (seen.to(wide) + self.gamma[short].to(wide) * self.backoff[label].to(wide)).log()

    def dense(self) -> Tensor:
        """The whole (V, V) table of probabilities: 4 V² bytes, 400 MB for 10,000 words."""
        return self(torch.arange(self.vocab_size, device=self.keys.device))

    def perplexity(self, tokens: Tensor, zero: str = "safe") -> float:
        """exp of the mean of -log P̂(next word | word) over a text.

        An *orphan* is a word that no word precedes in the training text; without a floor its
        probability is 0 and the perplexity of any other text that holds one is infinite. The
        conventions differ in what they do about orphans.

        Args:
            tokens: (n,) ids, n >= 2.
            zero: "safe", the model as it is, which gives orphans a positive probability;
                "zero-loss", an orphan costs nothing but is counted; "drop", an orphan is not
                counted; "paper", as "zero-loss" over whole blocks of 35 words, the last partial
                block dropped, which gives the paper's printed numbers.

        Raises:
            TypeError, ValueError: bad ids, another device, fewer than 2 tokens (36 for "paper"), an
                unknown ``zero``.
        """
        conventions = ("safe", "zero-loss", "drop", "paper")
        if zero not in conventions:
            raise ValueError(f"zero must be one of {', '.join(conventions)}, got {zero!r}")
        tokens = self._ids("tokens", tokens)
        short, label = tokens[:-1], tokens[1:]
        if zero == "paper":
            whole = len(label) // BLOCK * BLOCK
            short, label = short[:whole], label[:whole]
        if len(label) == 0:
            least = BLOCK + 1 if zero == "paper" else 2
            raise ValueError(
                f"tokens must hold at least {least} ids for zero={zero!r}, got {len(tokens)}"
            )
        loss = -self.log_prob(short, label)
        if zero == "safe":
            return math.exp(loss.mean().item())
        known = ~self.orphans[label]
        if zero == "drop" and not known.any():
            raise ValueError(
                "tokens must hold a word that is no orphan for zero='drop', got orphans only"
            )
        return math.exp((loss[known].sum() / (known.sum() if zero == "drop" else len(loss))).item())

    @property
    def orphans(self) -> Tensor:
        """(V,) which words no word precedes in the training text."""
        return torch.bincount(self.keys % self.vocab_size, minlength=self.vocab_size) == 0

    def _ids(self, name: str, value: Tensor) -> Tensor:
        return checks.ids(name, value, self.vocab_size, ("the bigram", self.keys))
