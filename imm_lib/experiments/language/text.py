"""Texts for language models: parts of a corpus with a vocabulary of their own, and columns read
side by side.
"""

import copy
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from imm_lib import checks, data

UNKNOWN, END = "<unk>", "<eos>"


def topics(
    size: int, seed: int = 0, vocab_size: int = 40, count: int = 4, switch: float = 0.02
) -> Tensor:
    """A synthetic text: every topic has a bigram of its own, and lasts 1 / switch words on average.

    The topic is what a longer history tells and the previous word alone does not. Texts of
    different seeds are drawn from the same bigrams.

    Args:
        size: number of words.
        seed: of the draws.
        vocab_size: number V of words.
        count: topics.
        switch: probability, before each word, of a new topic drawn uniformly.

    Returns:
        (size,) ids.
    """
    size, switch = checks.count("size", size), checks.number("switch", switch, 0, 1)
    rows = torch.rand(
        count, vocab_size, vocab_size, generator=torch.Generator().manual_seed(0)
    ).pow(20)
    generator = torch.Generator().manual_seed(seed)
    new = torch.rand(size, generator=generator) < switch
    drawn = torch.randint(count, (size,), generator=generator)
    word, topic, words = 0, 0, []
    for step in range(size):
        topic = int(drawn[step]) if new[step] else topic
        word = int(torch.multinomial(rows[topic, word], 1, generator=generator))
        words.append(word)
    return torch.tensor(words)


def part(
    corpus: data.Corpus, lines: int, first: int = 0, held_out: int | None = None, least: int = 2
) -> data.Corpus:
    """A corpus of fewer training lines, as if there were no others: rarer words become ``<unk>`` in
    every split.

    Args:
        corpus: a word-level corpus with ``<eos>`` and ``<unk>`` in its vocabulary.
        lines: training lines to keep.
        first: where they begin; past the last line they go on with the first.
        held_out: validation lines to keep, from the first; all by default.
        least: occurrences in the kept lines that give a word a place in the vocabulary.

    Raises:
        TypeError, ValueError: a number out of range, or a vocabulary without ``<eos>`` or
            ``<unk>``.
    """
    for word in (UNKNOWN, END):
        if word not in corpus.vocab:
            raise ValueError(
                f"corpus must have {word} in its vocabulary, got none in {corpus.name}"
            )
    end = corpus.vocab.index(END)
    train = _lines(corpus.train, end, "lines", lines, first)
    valid = corpus.valid if held_out is None else _lines(corpus.valid, end, "held_out", held_out, 0)
    counts = Counter(train.tolist())
    vocab = sorted(
        {w for i, w in enumerate(corpus.vocab) if counts[i] >= checks.number("least", least, 0)}
        | {UNKNOWN, END}
    )
    train, valid, test = (respell(t, corpus.vocab, vocab) for t in (train, valid, corpus.test))
    return data.Corpus(corpus.name, train, valid, test, vocab)


def respell(tokens: Tensor, vocab: list[str], other: list[str]) -> Tensor:
    """Ids of one vocabulary as ids of another, which has ``<unk>``; words that it lacks become
    that. Raises TypeError or ValueError for bad ids.
    """
    place = {word: i for i, word in enumerate(other)}
    table = torch.tensor([place.get(word, place[UNKNOWN]) for word in vocab])
    return table[checks.ids("tokens", tokens, len(vocab))]


def _lines(tokens: Tensor, end: int, name: str, count: int, first: int) -> Tensor:
    """``count`` lines of ``tokens`` from line ``first`` on, in a circle."""
    ends = (tokens == end).nonzero().flatten() + 1
    if checks.count(name, count) > len(ends):
        raise ValueError(f"{name} must be at most {len(ends)}, the lines of the text, got {count}")
    starts = torch.cat([ends.new_zeros(1), ends])
    first = first % len(ends)
    if first + count <= len(ends):
        return tokens[starts[first] : starts[first + count]]
    return torch.cat(
        [tokens[starts[first] : ends[-1]], tokens[: starts[first + count - len(ends)]]]
    )


class Block(NamedTuple):
    """What a training step reads: B columns of T words; ``place`` numbers the words in the order of
    the text.
    """

    words: Tensor  # (B, T) the previous words, short contexts
    labels: Tensor  # (B, T) the next words
    place: Tensor  # (B, T) positions in the text
    text: Tensor  # (n,) Stream.words

    def short(self, lag: int = 0) -> Tensor:
        """(B, T) the words ``lag`` places before the previous ones; the text's first where none
        is.
        """
        return self.text[(self.place - lag).clamp(min=0)] if lag else self.words


class Stream:
    """A text in B columns of equal length, read side by side in blocks of ``unroll`` words.

    Column b continues the text of column b - 1; what is left over at the end, fewer than B words,
    is not read.

    Args:
        tokens: (n,) ids.
        batch: number B of columns.
        unroll: words of a block; the last block of a pass may be shorter.

    Raises:
        TypeError, ValueError: bad ids or numbers, an empty text, or one of fewer than B + 1 tokens.

    >>> stream = Stream(torch.arange(8), batch=2, unroll=2)
    >>> [block.words.tolist() for block in stream]
    [[[0, 1], [3, 4]], [[2], [5]]]
    """

    def __init__(self, tokens: Tensor, batch: int = 20, unroll: int = 35):
        self.batch, self.unroll = checks.count("batch", batch), checks.count("unroll", unroll)
        tokens = checks.ids("tokens", tokens)
        self.length = (len(tokens) - 1) // batch
        if self.length < 1:
            raise ValueError(
                f"tokens must hold at least batch + 1 = {batch + 1} words, got {len(tokens)}"
            )
        size = batch * self.length
        self.words, self.labels = tokens[:size], tokens[1 : size + 1]

    def to(self, device: str | torch.device) -> "Stream":
        """The same stream with its words on another device."""
        moved = copy.copy(self)
        moved.words, moved.labels = self.words.to(device), self.labels.to(device)
        return moved

    def __len__(self) -> int:
        return -(-self.length // self.unroll)

    def __iter__(self) -> Iterator[Block]:
        columns = (self.batch, self.length)
        words, labels = self.words.view(columns), self.labels.view(columns)
        place = torch.arange(self.words.numel(), device=words.device).view(columns)
        for start in range(0, self.length, self.unroll):
            block = slice(start, start + self.unroll)
            yield Block(words[:, block], labels[:, block], place[:, block], self.words)
