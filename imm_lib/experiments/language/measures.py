"""What is read off a language model: perplexity, its mixture with the bigram, and the bigram that
it induces.
"""

import math

import torch
from torch import Tensor

from imm_lib import checks, data
from imm_lib.experiments.language.histories import read
from imm_lib.experiments.language.models import LanguageModel
from imm_lib.experiments.language.text import Stream
from imm_lib.fused import FusedIMM
from imm_lib.surrogates import SerializedIMM
from imm_lib.targets import KneserNeyBigram
from imm_lib.targets.kneser_ney import BLOCK

WEIGHTS = [i / 20 for i in range(20)]
"""Shares of the bigram from which the mixture's is chosen on validation text."""


@torch.no_grad()
def label_log_probs(model: LanguageModel, stream: Stream) -> Tensor:
    """(n,) log Q(next word) in nats at every place of the stream, in the order of the text; no
    dropout.
    """
    found = torch.empty(len(stream.words), device=stream.words.device)
    for block, features in read(model, stream):
        log_q = model.log_probs(features).gather(-1, block.labels.unsqueeze(-1)).squeeze(-1)
        found[block.place.flatten()] = log_q.flatten().float()
    return found


COUNTS = (10, 100)
"""Where "rare", "medium" and "frequent" short contexts part: occurrences in the training text."""


def by_frequency(log_q: Tensor, stream: Stream, train: Tensor, bigram: KneserNeyBigram) -> dict:
    """Where the loss lies: by how often the short context occurs in the training text, and whether
    the pair of it and the next word does.

    Args:
        log_q: (n,) log-probabilities of the stream's labels, nats.
        stream: the text on which the model is judged.
        train: (m,) ids of the training text.
        bigram: of this text; its keys are the pairs that occur.

    Returns:
        "rare, unseen", say -> its "share" of all places and its mean "loss" in nats; no key for
        what does not occur.
    """
    known = torch.bincount(train[:-1], minlength=bigram.vocab_size)[stream.words]
    seen = torch.isin(stream.words * bigram.vocab_size + stream.labels, bigram.keys)
    level = torch.bucketize(known, torch.tensor(COUNTS, device=known.device), right=True)
    found = {}
    for number, name in enumerate(("rare", "medium", "frequent")):
        for occurs, pair in ((seen, "seen"), (~seen, "unseen")):
            here = (level == number) & occurs
            if here.any():
                loss = -log_q[here].double().mean().item()
                found[f"{name}, {pair}"] = {"share": here.double().mean().item(), "loss": loss}
    return found


def perplexity(log_p: Tensor) -> float:
    """exp of minus the mean of log-probabilities, at most e^700."""
    return math.exp(min(-log_p.double().mean().item(), 700.0))


def mixture(log_q: Tensor, log_p: Tensor, weight: float) -> Tensor:
    """log((1 - weight) Q + weight P̂) of the labels, from the (n,) log-probabilities of both."""
    weight = checks.number("weight", weight, 0, 1)
    if weight in (0.0, 1.0):
        return log_p if weight else log_q
    return torch.logaddexp(log_q.double() + math.log1p(-weight), log_p + math.log(weight))


def mixed(log_q: dict[str, Tensor], log_p: dict[str, Tensor]) -> dict:
    """Perplexities by split, "valid" and others, of the model and of its "mixture", whose "weight"
    is best on validation text; from the (n,) log-probabilities of the labels in each split.
    """

    def perplexities(weight: float) -> dict[str, float]:
        return {s: perplexity(mixture(log_q[s], log_p[s], weight)) for s in log_q}

    found = {weight: perplexities(weight) for weight in WEIGHTS}
    best = min(WEIGHTS, key=lambda weight: found[weight]["valid"])
    return {**found[0.0], "mixture": {"weight": best, **found[best]}}


def sweep(fused: FusedIMM, model: LanguageModel, stream: Stream, lag: int = 0) -> None:
    """Rebuild a table by one pass over a text: Q̂(y|x) is the mean of Q(y|history) over the
    histories that end in x (eq. 6), or have it ``lag`` words before their end.
    """
    pairs = ((f.flatten(0, 1), block.short(lag).flatten()) for block, f in read(model, stream))
    fused.refresh(pairs, *model.last_layer)


def induced(
    model: LanguageModel, stream: Stream, bigram: KneserNeyBigram, lag: int = 0
) -> SerializedIMM:
    """The bigram that the model induces on a text, by a :func:`sweep`, as a table: ``.table``
    (V, V) log Q̂, NaN where not ``.visited``.

    The last layer is fused with the mean, so that no more than a part of a block's probabilities is
    held.
    """
    sizes = (bigram.vocab_size,) * 2
    fused = FusedIMM(bigram, *sizes).to(stream.words.device)
    sweep(fused, model, stream, lag)
    found = SerializedIMM(bigram, *sizes).to(stream.words.device)
    found.table, found.visited = fused.table, fused.visited
    return found


def induced_perplexities(found: SerializedIMM, texts: data.Corpus) -> dict[str, dict[str, float]]:
    """Perplexity of an induced bigram on every split (Table 5), "paper" and "safe", as of
    KneserNeyBigram.perplexity.

    "safe" counts every word, and a word that the text of the table lacks as a short context gets
    the mean of all rows; "paper" reads whole blocks of 35 words, drops the last partial block, and
    counts such words as no loss.
    """
    table, visited = found.table, found.visited
    mean = torch.logsumexp(table[visited].double(), 0) - math.log(int(visited.sum()))
    numbers = {}
    for split in data.SPLITS:
        tokens = getattr(texts, split).to(table.device)
        short, label = tokens[:-1], tokens[1:]
        known = visited[short]
        log_p = torch.where(known, table[short, label].double(), mean[label])
        numbers[split] = {"safe": perplexity(log_p)}
        if whole := len(label) // BLOCK * BLOCK:
            numbers[split]["paper"] = perplexity(torch.where(known, log_p, 0.0)[:whole])
    return numbers
