"""The restricted model: a Kneser-Ney bigram of word pieces, mixed from the task's text and a larger
one.
"""

import torch
from torch import Tensor, nn

from imm_lib import checks
from imm_lib.targets import KneserNeyBigram

WEIGHTS = [i / 10 for i in range(1, 10)]
"""Shares of the task's bigram from which :func:`fit` chooses."""

HELD_OUT = 10
"""One sequence of so many is held out for that choice."""


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
        return _mixed(_logs(self.task, self.large, short, label), self.weight)


def _logs(task: KneserNeyBigram, large: KneserNeyBigram, short: Tensor, label: Tensor) -> Tensor:
    """(2, N) log-probabilities."""
    return torch.stack([model.log_prob(short, label).double() for model in (task, large)])


def _mixed(logs: Tensor, weight: float) -> Tensor:
    """(2, N) log-probabilities -> (N,) the logarithm of their mixture."""
    return (logs + logs.new_tensor([[weight], [1 - weight]]).log()).logsumexp(0)


Restricted = KneserNeyBigram | Mixture


def unigram(target: Restricted, short: Tensor) -> Tensor:
    """(V,) the mean of a target's rows over (N,) words of a text: a control that ignores its
    context.
    """
    words, count = torch.unique(short, return_counts=True)
    row = torch.zeros(target.vocab_size, dtype=torch.float64, device=short.device)
    for part, weight in zip(words.split(256), count.split(256), strict=True):
        row += weight.double() @ target(part).double()
    return (row / row.sum()).float()


def pairs(sequences: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The bigrams at the places of a text: none across sequences, and none that ends in a last
    token.

    Args:
        sequences: ids, each with its first and last token.

    Returns:
        (N,) words, and (N,) the words that follow them; what ``KneserNeyBigram.fit_pairs`` takes.
    """
    return torch.cat([ids[:-2] for ids in sequences]), torch.cat([ids[1:-1] for ids in sequences])


def fit(sequences: list[Tensor], large: KneserNeyBigram) -> Mixture:
    """The mixture whose weight is best on held-out text, fitted again on all of it.

    Args:
        sequences: ids of the task's training text, each with its first and last token.
        large: the bigram of the larger text.

    Raises:
        ValueError: fewer than two sequences.
    """
    if len(sequences) < 2:
        raise ValueError(f"sequences must be at least 2, got {len(sequences)}")
    held_out = min(HELD_OUT, len(sequences))
    kept = [s for i, s in enumerate(sequences) if i % held_out]
    part = KneserNeyBigram.fit_pairs(*pairs(kept), large.vocab_size)
    logs = _logs(part, large, *pairs(sequences[::held_out]))
    weight = max(WEIGHTS, key=lambda w: _mixed(logs, w).mean().item())
    return Mixture(KneserNeyBigram.fit_pairs(*pairs(sequences), large.vocab_size), large, weight)
