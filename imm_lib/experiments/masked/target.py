"""The restricted model: a Kneser-Ney bigram of word pieces, mixed from the task's text and a larger
one.
"""

import math

import torch
from torch import Tensor, nn

from imm_lib import checks
from imm_lib.targets import KneserNeyBigram

WEIGHTS = [i / 10 for i in range(1, 10)]
"""Shares of the task's bigram from which :func:`fit` chooses."""


class Mixture(nn.Module):
    """P̂(y|x) = w · task's + (1 - w) · larger text's bigram; (B,) ids -> (B, V) probabilities.

    Args:
        task: the task's bigram.
        large: the larger text's.
        weight: w.
    """

    def __init__(self, task: KneserNeyBigram, large: KneserNeyBigram, weight: float):
        super().__init__()
        self.task, self.large, self.weight = task, large, checks.number("weight", weight, 0, 1)
        self.vocab_size = task.vocab_size

    def forward(self, short: Tensor) -> Tensor:
        """Rows of the mixture."""
        return self.weight * self.task(short) + (1 - self.weight) * self.large(short)

    def log_prob(self, short: Tensor, label: Tensor) -> Tensor:
        """(N,), (N,) -> (N,) log P̂(label | short)."""
        return _mixed(self.task, self.large, short, label, self.weight)


Restricted = KneserNeyBigram | Mixture


class Unigram(nn.Module):
    """A control that ignores its context: every row is the mean of the mixture's rows over a text.

    Args:
        target: what is averaged.
        short: (N,) words of the text.
    """

    row: Tensor

    def __init__(self, target: Restricted, short: Tensor, chunk: int = 256):
        super().__init__()
        words, count = torch.unique(short, return_counts=True)
        row = torch.zeros(target.vocab_size, dtype=torch.float64, device=short.device)
        for part, weight in zip(words.split(chunk), count.split(chunk), strict=True):
            row += weight.double() @ target(part).double()
        self.vocab_size = target.vocab_size
        self.register_buffer("row", (row / row.sum()).float())

    def forward(self, short: Tensor) -> Tensor:
        """The one row, as often as asked."""
        return self.row.expand(len(short), -1)


def _mixed(task, large, short: Tensor, label: Tensor, weight: float) -> Tensor:
    parts = [(model, w) for model, w in ((task, weight), (large, 1 - weight)) if w > 0]
    logs = [model.log_prob(short, label).double() + math.log(w) for model, w in parts]
    return torch.stack(logs).logsumexp(0)


def pairs(sequences: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The bigrams at the places of a text: none across sequences, and none that ends in a last
    token.

    Args:
        sequences: ids, each with its first and last token.

    Returns:
        (N,) words, and (N,) the words that follow them; what ``KneserNeyBigram.fit_pairs`` takes.
    """
    return torch.cat([ids[:-2] for ids in sequences]), torch.cat([ids[1:-1] for ids in sequences])


def fit(sequences: list[Tensor], large: KneserNeyBigram, held_out: int = 10) -> Mixture:
    """The mixture whose weight is best on held-out text, fitted again on all of it.

    Args:
        sequences: ids of the task's training text, each with its first and last token.
        large: the bigram of the larger text.
        held_out: one sequence of so many is held out for the choice; at least 2.

    Raises:
        ValueError: fewer than two sequences, or ``held_out`` below 2.
    """
    if len(sequences) < 2:
        raise ValueError(f"sequences must be at least 2, got {len(sequences)}")
    if checks.count("held_out", held_out) == 1:
        raise ValueError("held_out must be at least 2, else nothing is left to fit, got 1")
    held_out = min(held_out, len(sequences))
    kept = [s for i, s in enumerate(sequences) if i % held_out]
    part = KneserNeyBigram.fit_pairs(*pairs(kept), large.vocab_size)
    apart = pairs(sequences[::held_out])
    weight = max(WEIGHTS, key=lambda w: _mixed(part, large, *apart, w).mean().item())
    return Mixture(KneserNeyBigram.fit_pairs(*pairs(sequences), large.vocab_size), large, weight)
