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
from imm_lib.baselines import ReverseKD
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

    Behind its window a transformer reads a snippet at one and the same place. With ``ahead`` up to
    so many of the words before it are run again too, a new number at each call, so that it stands
    at every place that it has in training.
    """

    def __init__(self, stream: Stream, vocab_size: int, ahead: int = 0):
        super().__init__(stream, vocab_size)
        self.contexts, self.ahead = FirstWord(stream.words, vocab_size), ahead
        self.generator: torch.Generator | None = None

    @override
    def features(self, model: LanguageModel, state: Tensor | None = None) -> Query:
        """(N, c) snippets, (N,) places -> (N, H)."""

        def run(short: Tensor, place: Tensor) -> Tensor:
            ahead = self.ahead and int(torch.randint(self.ahead + 1, (), generator=self.generator))
            words = self.contexts.short
            places = place.unsqueeze(1) + torch.arange(-ahead, 1, device=place.device)
            places = places % len(words)
            read = torch.cat([words[places[:, :-1]], short], 1)
            return model.hidden(read, self.before(model, places[:, 0]))[0][:, -1]

        return run


class SampledSnippets(terms.Sampled):
    """Sampled IMM for a target that reads snippets, without dropout; ``places`` of the block are
    drawn for each step, whose snippets are used. With ``moved`` they stand at all places of a
    block.
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
        moved: bool = False,
    ):
        histories = Snippets(stream, vocab_size, moved * (stream.unroll - target.size))
        super().__init__(target, lam, histories, k, checks.count("places", places), seed=seed)
        self.size, histories.generator = target.size, self.generator

    @override
    def own(self, model: LanguageModel, block: Block) -> Iterator[Tensor]:
        short = last_words(block.text, self.drawn(block.place.flatten(), self.words), self.size)
        with without_dropout(model):
            yield self.risk(model, short)


class UncorrectedSnippets(terms._Random):
    """Reverse distillation from a target that reads snippets, at every place of the block, or at so
    many ``places`` that are drawn for each step.
    """

    def __init__(self, target: Reader, lam: float, places: int = 0, seed: int = 0):
        super().__init__(lam, seed)
        self.imm, self.size, self.places = ReverseKD(target), target.size, places

    @override
    def shared(self, log_q: Tensor, block: Block) -> Tensor:
        log_q, place = log_q.flatten(0, 1), block.place.flatten()
        if self.places:
            drawn = self.drawn(torch.arange(len(place), device=place.device), self.places)
            log_q, place = log_q[drawn], place[drawn]
        return self.imm(log_q, last_words(block.text, place, self.size))


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
    bigram = KneserNeyBigram.fit(many.train, size)
    sampled = {"stream": stream, "vocab_size": size, "k": config["k"], "places": config["places"]}
    known: dict[str, Callable[..., terms.Term]] = {
        "none": terms.Term,
        "IMM": partial(SampledSnippets, reader, **sampled, seed=seed),
        "reverse-KD": partial(UncorrectedSnippets, reader, seed=seed),
        "bigram": partial(terms.MovingAverage, bigram),
    }
    held = {s: Stream(getattr(long, s), settings.batch, settings.unroll) for s in ("valid", "test")}
    log_p = {split: reader.label_log_probs(words) for split, words in held.items()}
    found = {}
    for name, arm in config["arms"].items():
        its = {key: value for key, value in arm.items() if key not in runs.KNOWN | {"term"}}
        own = replace(settings, **{key: arm[key] for key in arm if key in runs.KNOWN})
        trained = train(long, known[arm["term"]](**its), own, resume.checkpoint(name))
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
    for name, arm in config["arms"].items():
        options.one_of(
            f"arms/{name}/term", arm.get("term"), ("none", "IMM", "reverse-KD", "bigram")
        )
        options.each(f"arms/{name}", arm, ("term", "lam", "places", "moved", "clip_apart"))
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
_WHY: dict[str, dict] = {
    "reverse-KD": {"term": "reverse-KD", "lam": 1.0},
    "reverse-KD, 40 places": {"term": "reverse-KD", "lam": 1.0, "places": 40},
    "reverse-KD, clipped apart": {"term": "reverse-KD", "lam": 1.0, "clip_apart": True},
    "IMM": {"term": "IMM", "lam": 1.0},
    "IMM, all places of the window": {"term": "IMM", "lam": 1.0, "moved": True},
}
_COLUMNS = {
    "test perplexity": "test",
    "mixed with the target": "mixture/test",
    "CPU s": "cpu_s",
}


def _experiment(name: str, full: dict, against: str) -> Experiment:
    table = partial(reading.listed, columns=_COLUMNS, against=against, where="arms/{arm}")
    scales = {"full": full, "ci": {**full, **_QUICK}}
    return Experiment(name, scales, units, run, table, check=check)


EXPERIMENTS = [
    _experiment("language-snippets", _FULL, "baseline"),
    _experiment("language-snippets-why", {**_FULL, "seeds": 2, "arms": _WHY}, "IMM"),
]
