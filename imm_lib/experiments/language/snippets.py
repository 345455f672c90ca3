"""A short-context model helps a longer-context one: a target that reads the last c words of a text
and no more.

Many snippets of c + 1 words are enough to train it; the full model needs long text, of which there
is little. A short context is now a tuple of c words, most of which occur once. Its extended
contexts are therefore taken from its first
word: what stands before other occurrences of that word in the text, with the c words read after it.
That is π(e|s) with all of s but its first word forgotten.
"""

from collections.abc import Callable, Iterator
from dataclasses import fields, replace

import torch
from torch import Tensor, nn
from typing_extensions import override

from imm_lib import checks, data
from imm_lib.baselines import ReverseKD
from imm_lib.contexts import GroupedContexts, Support
from imm_lib.estimators import Query, SampledIMM
from imm_lib.experiments import options, resume
from imm_lib.experiments.language import measures, terms
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


def last_words(words: Tensor, place: Tensor, size: int) -> Tensor:
    """(...,) places -> (..., c) the words that end there; before the first word the text's last
    ones stand.
    """
    return words[
        (place.unsqueeze(-1) + torch.arange(1 - size, 1, device=place.device)) % len(words)
    ]


class FirstWord(nn.Module):
    """Extended contexts of a snippet: the places of its first word. See the module.

    Args:
        stream: the text.
        vocab_size: number V of words.
    """

    def __init__(self, stream: Stream, vocab_size: int):
        super().__init__()
        self.grouped = GroupedContexts(stream.words, vocab_size)

    def support(self, short: Tensor) -> Support:
        """(N, c) snippets -> all places of each with their log-weights, as of GroupedContexts."""
        return self.grouped.support(short[:, 0])

    def sample(self, short: Tensor, k: int, generator: torch.Generator | None = None) -> Tensor:
        """(N, c) snippets -> (N, k) places."""
        return self.grouped.sample(short[:, 0], k, generator)


class SampledSnippets(terms._Random):
    """Sampled IMM for a target that reads snippets, without dropout.

    Args:
        target: a :class:`Reader`.
        lam: λ.
        stream: the text.
        vocab_size: number V of words.
        k: extended contexts of a snippet.
        places: of a block, drawn for each step, whose snippets are used.
        seed: of the draws.
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
        super().__init__(lam, seed)
        self.histories, self.places = Histories(stream, vocab_size), checks.count("places", places)
        self.size = target.size
        self.imm = SampledIMM(target, FirstWord(stream, vocab_size), k, generator=self.generator)

    @override
    def begin_epoch(self, model: LanguageModel, stream: Stream, first: bool) -> None:
        self.histories.refresh(model)

    def query(self, model: LanguageModel) -> Query:
        """(N, c) snippets, (N,) places -> (N, V): the snippet read after what stands before the
        place.
        """

        def run(short: Tensor, extended: Tensor) -> Tensor:
            if self.histories.states is None:
                raise RuntimeError("the cache is empty: call begin_epoch first")
            before = self.histories.states[extended].to(model.begin(1).dtype)
            return model.log_probs(model.hidden(short, before)[0][:, -1])

        return run

    @override
    def own(self, model: LanguageModel, block: Block) -> Iterator[Tensor]:
        place = block.place.flatten()
        drawn = place[
            torch.randint(len(place), (self.places,), generator=self.generator).to(place.device)
        ]
        with without_dropout(model):
            yield self.imm(
                self.query(model),
                last_words(self.histories.stream.words.to(place.device), drawn, self.size),
            )


class UncorrectedSnippets(terms._OnePass):
    """Reverse distillation from a target that reads snippets, at every place of the block.

    Args:
        target: a :class:`Reader`.
        lam: λ.
    """

    words: Tensor  # from the beginning of an epoch

    def __init__(self, target: Reader, lam: float):
        super().__init__(lam, own_pass=False)
        self.imm, self.size = ReverseKD(target), target.size

    @override
    def begin_epoch(self, model: LanguageModel, stream: Stream, first: bool) -> None:
        super().begin_epoch(model, stream, first)
        self.words = stream.words

    @override
    def loss(self, log_q: Tensor, block: Block) -> Tensor:
        return self.imm(
            log_q.flatten(0, 1), last_words(self.words, block.place.flatten(), self.size)
        )


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

    def term(arm: dict) -> terms.Term:
        options = {key: value for key, value in arm.items() if key != "term"}
        known: dict[str, Callable[..., terms.Term]] = {
            "none": terms.Term,
            "IMM": lambda lam: SampledSnippets(
                reader, lam, stream, size, config["k"], config["places"], seed
            ),
            "reverse-KD": lambda lam: UncorrectedSnippets(reader, lam),
            "bigram": lambda lam: terms.MovingAverage(bigram, lam),
        }
        return known[arm["term"]](**options)

    found = {}
    held = {s: Stream(getattr(long, s), settings.batch, settings.unroll) for s in ("valid", "test")}
    log_p = {split: _label_log_probs(reader, words) for split, words in held.items()}
    for name, arm in config["arms"].items():
        trained = train(long, term(arm), settings, resume.checkpoint(name))
        log_q = {
            split: measures.label_log_probs(trained.model, words) for split, words in held.items()
        }
        mixed = {
            split: [
                measures.perplexity(measures.mixture(log_q[split], log_p[split], w))
                for w in measures.WEIGHTS
            ]
            for split in held
        }
        best = mixed["valid"].index(min(mixed["valid"]))
        found[name] = {
            "valid": mixed["valid"][0],
            "test": mixed["test"][0],
            "mixture": {"weight": measures.WEIGHTS[best], "test": mixed["test"][best]},
            "epochs": len(trained.history),
            "cpu_s": round(sum(entry["cpu_s"] for entry in trained.history), 2),
        }
    target = {split: measures.perplexity(values) for split, values in log_p.items()}
    return {
        "arms": found,
        "target": target,
        "vocabulary": size,
        "words": [len(long.train), len(many.train)],
    }


def _label_log_probs(reader: Reader, stream: Stream) -> Tensor:
    """(n,) log P̂ of a stream's labels."""
    found = torch.empty(len(stream.words), device=stream.words.device)
    for block in stream:
        place = block.place.flatten()
        rows = reader(last_words(stream.words, place, reader.size)).log()
        found[place] = rows.gather(1, block.labels.flatten().unsqueeze(1)).squeeze(1)
    return found


def check(config: dict) -> None:
    """Raise ValueError for an unknown term, or settings that no training has."""
    options.filled("arms", config["arms"])
    for name, arm in config["arms"].items():
        options.one_of(
            f"arms/{name}/term", arm.get("term"), ("none", "IMM", "reverse-KD", "bigram")
        )
        options.each(f"arms/{name}", arm, ("term", "lam"))
    checks.count("parts", config["parts"])
    options.each("settings", config["settings"], [f.name for f in fields(Settings)])
    Settings(**config["settings"])


def units(config: dict, seed: int) -> list[dict]:
    """One per amount of side text and seed."""
    return [
        {"snippet_lines": lines, "seed": seed + s}
        for s in range(config["seeds"])
        for lines in config["snippet_lines"]
    ]


def readings(result: dict) -> dict[int, dict[str, dict[str, Tensor]]]:
    """By amount of side text and arm: (seeds,) float64 of "test", "mixed" and "cpu_s"; the arm
    "target" has "test".
    """
    found: dict[int, dict[str, dict[str, list[float]]]] = {}
    for entry in result["units"]:
        runs, numbers = found.setdefault(entry["unit"]["snippet_lines"], {}), entry["numbers"]
        runs.setdefault("target", {"test": []})["test"].append(numbers["target"]["test"])
        for arm, run in numbers["arms"].items():
            read = {"test": run["test"], "mixed": run["mixture"]["test"], "cpu_s": run["cpu_s"]}
            for key, value in read.items():
                runs.setdefault(arm, {}).setdefault(key, []).append(value)
    return {
        lines: {
            arm: {key: torch.tensor(values, dtype=torch.float64) for key, values in run.items()}
            for arm, run in runs.items()
        }
        for lines, runs in found.items()
    }
