"""A short-context model helps a longer-context one: a target that reads the last c words of a text
and no more.

Many snippets of c + 1 words are enough to train it; the full model needs long text, of which there
is little. A short context is now a tuple of c words, most of which occur once. Its extended
contexts are therefore taken from its first
word: what stands before other occurrences of that word in the text, with the c words read after it.
That is π(e|s) with all of s but its first word forgotten.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from imm_lib import checks, data
from imm_lib.contexts import GroupedContexts, Support
from imm_lib.estimators import Query
from imm_lib.experiments import Experiment, options, reading, resume
from imm_lib.experiments.language import measures, runs, terms
from imm_lib.experiments.language.histories import Histories
from imm_lib.experiments.language.models import LanguageModel
from imm_lib.experiments.language.text import Block, Stream, part, respell
from imm_lib.experiments.language.training import Settings, train
from imm_lib.experiments.training import without_dropout
from imm_lib.targets.kneser_ney import KneserNeyBigram


class Reader(nn.Module):
    """A language model as a target: (N, c) words -> (N, V) probabilities of the next one.

    Args:
        model: a transformer whose window is c - 1 words.
    """

    def __init__(self, model: LanguageModel):
        super().__init__()
        self.model, self.size = model.eval(), checks.count("window", model.window) + 1

    @torch.no_grad()
    def forward(self, short: Tensor) -> Tensor:
        """P̂(y | the c words)."""
        return self.model(short[:, -1:], short[:, :-1])[0][:, 0].exp()

    def label_log_probs(self, stream: Stream) -> Tensor:
        """(n,) log P̂ of a stream's labels."""
        found = torch.empty(len(stream.words), device=stream.words.device)
        for block in stream:
            place = block.place.flatten()
            rows = self(last_words(stream.words, place, self.size)).log()
            found[place] = rows.gather(1, block.labels.flatten().unsqueeze(1)).squeeze(1)
        return found


def last_words(words: Tensor, place: Tensor, size: int) -> Tensor:
    """(...,) places -> (..., c) the words that end there; before the first word the text's last
    ones stand.
    """
    return words[
        (place.unsqueeze(-1) + torch.arange(1 - size, 1, device=place.device)) % len(words)
    ]


class FirstWord(GroupedContexts):
    """Extended contexts of a snippet: the places of its first word. See the module."""

    @override
    def support(self, short: Tensor) -> Support:
        """(N, c) snippets -> all places of each with their log-weights."""
        return super().support(short[:, 0])

    @override
    def sample(self, short: Tensor, k: int, generator: torch.Generator | None = None) -> Tensor:
        """(N, c) snippets -> (N, k) places."""
        return super().sample(short[:, 0], k, generator)


class Snippets(Histories):
    """Histories whose short contexts are snippets: each is read after what stands before a place of
    its first word.
    """

    def __init__(self, stream: Stream, vocab_size: int):
        super().__init__(stream, vocab_size)
        self.contexts = FirstWord(stream.words, vocab_size)

    @override
    def features(self, model: LanguageModel, state: Tensor | None = None) -> Query:
        """(N, c) snippets, (N,) places -> (N, H)."""
        return lambda short, place: model.hidden(short, self.before(model, place))[0][:, -1]


class SampledSnippets(terms.Sampled):
    """Sampled IMM for a target that reads snippets, without dropout; ``places`` of the block are
    drawn for each step, whose snippets are used.
    """

    def __init__(
        self,
        target: Reader,
        lam: float,
        stream: Stream,
        vocab_size: int,
        k: int = 5,
        places: int = 70,
        seed: int = 0,
    ):
        places = checks.count("places", places)
        super().__init__(target, lam, Snippets(stream, vocab_size), k, places, seed=seed)
        self.size = target.size

    @override
    def own(self, model: LanguageModel, block: Block) -> Iterator[Tensor]:
        short = last_words(block.text, self.drawn(block.place.flatten(), self.words), self.size)
        with without_dropout(model):
            yield self.risk(model, short)


class UncorrectedSnippets(terms.Uncorrected):
    """Reverse distillation from a target that reads snippets, at every place of the block."""

    def __init__(self, target: Reader, lam: float):
        super().__init__(target, lam)
        self.size = target.size

    @override
    def short(self, block: Block) -> Tensor:
        return last_words(block.text, block.place.flatten(), self.size)


def texts(config: dict, seed: int, snippet_lines: int) -> tuple[data.Corpus, data.Corpus]:
    """The seed's long text, and the same with the text of the snippets for training; one
    vocabulary, the long text's.

    The snippets come from other lines, those that follow.
    """
    whole = data.load("ptb")
    ends = int((whole.train == whole.vocab.index("<eos>")).sum())
    first, held_out = seed * (ends // config["parts"]), config["held_out"]
    long = part(whole, config["lines"], first, held_out)
    many = part(whole, snippet_lines, first + config["lines"], held_out, least=1)
    return long, replace(long, train=respell(many.train, many.vocab, long.vocab))


def run(unit: dict, config: dict, device: torch.device) -> dict:
    """The target's training, and every arm's on the same text; perplexities of the best epochs."""
    seed, lines = unit["seed"], unit["snippet_lines"]
    long, many = (text.to(device) for text in texts(config, seed, lines))
    settings = Settings(**config["settings"], seed=seed)
    # one word a step, behind a window: what is read is a snippet, whatever the text
    short = replace(settings, batch=config["snippet_batch"], unroll=1, window=config["size"] - 1)
    reader = Reader(train(many, None, short, resume.checkpoint("target")).model)
    stream, size = Stream(long.train, settings.batch, settings.unroll), len(long.vocab)
    bigram, sizes = KneserNeyBigram.fit(many.train, size), (config["k"], config["places"])
    known: dict[str, Callable[[float], terms.Term]] = {
        "none": terms.Term,
        "IMM": lambda lam: SampledSnippets(reader, lam, stream, size, *sizes, seed),
        "reverse-KD": lambda lam: UncorrectedSnippets(reader, lam),
        "bigram": lambda lam: terms.MovingAverage(bigram, lam),
    }
    held = {s: Stream(getattr(long, s), settings.batch, settings.unroll) for s in ("valid", "test")}
    log_p = {split: reader.label_log_probs(words) for split, words in held.items()}
    found = {}
    for name, arm in config["arms"].items():
        term = known[arm["term"]](arm.get("lam", 0.0))
        trained = train(long, term, settings, resume.checkpoint(name))
        log_q = {s: measures.label_log_probs(trained.model, held[s]) for s in held}
        found[name] = {
            **measures.mixed(log_q, log_p),
            "epochs": len(trained.history),
            "cpu_s": round(sum(entry["cpu_s"] for entry in trained.history), 2),
        }
    return {
        "arms": found,
        "target": {split: measures.perplexity(values) for split, values in log_p.items()},
        "vocabulary": size,
        "words": [len(long.train), len(many.train)],
    }


def check(config: dict) -> None:
    """Raise ValueError for an unknown term, or settings that no training has."""
    options.filled("arms", config["arms"])
    for name, arm in config["arms"].items():
        options.one_of(
            f"arms/{name}/term", arm.get("term"), ("none", "IMM", "reverse-KD", "bigram")
        )
        options.each(f"arms/{name}", arm, ("term", "lam"))
    checks.count("parts", config["parts"])
    options.each("settings", config["settings"], runs.KNOWN)
    Settings(**config["settings"])


def units(config: dict, seed: int) -> list[dict]:
    """One per amount of side text and seed."""
    return [
        {"snippet_lines": lines, "seed": seed + s}
        for s in range(config["seeds"])
        for lines in config["snippet_lines"]
    ]


_FULL: dict[str, Any] = {
    **{"lines": 421, "snippet_lines": [1262], "parts": 20, "held_out": 400, "seeds": 20},
    **{"size": 3, "snippet_batch": 256, "k": 5, "places": 40},
    "settings": {
        **{"model": "transformer", "width": 64, "dropout": 0.2, "window": 20, "unroll": 20},
        **{"epochs": 12, "optimiser": "adam", "lr": 2e-3},
    },
    "arms": {
        "baseline": {"term": "none"},
        "reverse-KD": {"term": "reverse-KD", "lam": 1.0},
        "IMM": {"term": "IMM", "lam": 1.0},
        "IMM, bigram": {"term": "bigram", "lam": 1.0},
    },
}
_QUICK = {
    **{"lines": 60, "snippet_lines": [120], "held_out": 60, "seeds": 1},
    "settings": {**_FULL["settings"], "width": 8, "epochs": 1},
}
_COLUMNS = {
    "test perplexity": "test",
    "mixed with the target": "mixture/test",
    "CPU s": "cpu_s",
}

EXPERIMENTS = [
    Experiment(
        name="language-snippets",
        scales={"full": _FULL, "ci": {**_FULL, **_QUICK}},
        units=units,
        run=run,
        table=partial(reading.listed, columns=_COLUMNS, against="baseline", where="arms/{arm}"),
        check=check,
    )
]
