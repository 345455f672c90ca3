"""Units of the language experiments: one training run, and their table."""

import functools
import math
from collections.abc import Callable
from dataclasses import fields

import torch

from imm_lib import data
from imm_lib.baselines import SampledNoising
from imm_lib.experiments import options, resume
from imm_lib.experiments.language import fused, measures, terms
from imm_lib.experiments.language.histories import Histories
from imm_lib.experiments.language.models import LanguageModel
from imm_lib.experiments.language.text import Stream, part, topics
from imm_lib.experiments.language.training import WAY, Diverged, Settings, train
from imm_lib.experiments.table import Row, Table
from imm_lib.targets import KneserNeyBigram

LINES = 42_068
"""Training lines of the Penn Treebank."""

FREQUENT = 200
"""Words, the most frequent of the training text, whose induced rows are looked at one by one."""


@functools.lru_cache(maxsize=1)
def texts(corpus: str, lines: int, seed: int, held_out: int | None, least: int = 2) -> data.Corpus:
    """The seed's own part of the training lines, a fifth of the corpus away from the next seed's;
    or all of them.

    The learning rate follows the first ``held_out`` validation lines. A word has a place in the
    vocabulary if it occurs ``least`` times in them. Of "topics", lines are words.
    """
    if corpus == "topics":
        draws = {s: topics(lines, 3 * seed + i) for i, s in enumerate(data.SPLITS)}
        return data.Corpus(corpus, vocab=[str(word) for word in range(40)], **draws)
    whole = data.load(corpus)
    if lines >= LINES and corpus == "ptb":
        return part(whole, LINES, 0, held_out, least=1)
    ends = int((whole.train == whole.vocab.index("<eos>")).sum())
    return part(whole, lines, seed * (ends // 5), held_out, least)


KNOWN = {field.name for field in fields(Settings)}
"""What an arm may say of its model and training; the rest is its term's."""


def build(spec: dict, corpus: data.Corpus, settings: Settings, seed: int) -> terms.Term:
    """The term that ``spec`` names; raises ValueError listing the known ones."""
    bigram, size = KneserNeyBigram.fit(corpus.train, len(corpus.vocab)), len(corpus.vocab)

    def sampled(
        lam: float, steps: int = 1, cache: bool = True, kind: type = terms.Sampled, **rest
    ) -> terms.Term:
        stream = Stream(corpus.train, settings.batch, settings.unroll)
        return kind(bigram, lam, Histories(stream, size, steps, cache), seed=seed, **rest)

    def average(own_pass: bool = False, **rest) -> terms.Term:
        term = terms.MovingAverage(bigram, **rest)
        return terms.OwnPass(term) if own_pass else term

    def skip(lam: float) -> terms.MovingAverage:
        # in the text's every other word, neighbours are two places apart
        apart = torch.cat([corpus.train[::2], corpus.train[1::2]])
        return terms.MovingAverage(KneserNeyBigram.fit(apart, size), lam, lag=1)

    known: dict[str, Callable[..., terms.Term]] = {
        "none": terms.Term,
        "noising": functools.partial(terms.Noising, corpus.train, size, seed=seed),
        "reverse-KD": functools.partial(terms.Uncorrected, bigram),
        "moving average": average,
        "fused": functools.partial(fused.Fused, bigram, tokens=corpus.train),
        "skip-bigram": skip,
        "both": lambda lam: terms.Several([terms.MovingAverage(bigram, lam / 2), skip(lam / 2)]),
        "serialized": functools.partial(terms.Serialized, bigram),
        "sampled": sampled,
        "sampled, fused": functools.partial(sampled, kind=fused.FusedSampled),
        "sampled, uncorrected": functools.partial(sampled, estimator=SampledNoising),
    }
    name = spec.get("term", "none")
    options.one_of("term", name, known)
    return known[name](**{key: spec[key] for key in spec if key not in KNOWN | {"term"}})


def settings_of(spec: dict, seed: int) -> Settings:
    """What ``spec`` says of the model and its training."""
    return Settings(**{**{key: spec[key] for key in spec if key in KNOWN}, "seed": seed})


def prepared(
    config: dict, arm: str, lines: int, seed: int, device: torch.device, **changes: object
) -> tuple[data.Corpus, terms.Term, Settings]:
    """An arm's text, term and settings, but for some changes: what :func:`train` takes."""
    spec = {**config["settings"], **config["arms"][arm], **changes}
    settings, least = settings_of(spec, seed), config.get("least", 2)
    corpus = texts(config["corpus"], lines, seed, config["held_out"], least).to(device)
    return corpus, build(spec, corpus, settings, seed), settings


def _read_off(
    model: LanguageModel, corpus: data.Corpus, settings: Settings, induced: bool = True
) -> dict:
    """Everything that is reported of the weights of the best epoch; of the induced bigram, a table
    of V x V, where it is asked for.
    """
    bigram = KneserNeyBigram.fit(corpus.train, len(corpus.vocab))
    streams = {s: Stream(getattr(corpus, s), settings.batch, settings.unroll) for s in data.SPLITS}
    held = {split: streams[split] for split in ("valid", "test")}
    log_q = {split: measures.label_log_probs(model, held[split]) for split in held}
    log_p = {split: bigram.log_prob(held[split].words, held[split].labels) for split in held}
    numbers = {
        **measures.mixed(log_q, log_p),
        "places": measures.by_frequency(log_q["test"], held["test"], corpus.train, bigram),
        "bigram": {s: bigram.perplexity(getattr(corpus, s)) for s in data.SPLITS},
        "vocabulary": len(corpus.vocab),
        "words": len(corpus.train),
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    if induced:
        found = measures.induced(model, streams["train"], bigram)
        numbers["induced"] = measures.induced_perplexities(found, corpus)
        if settings.seed == 0:
            numbers["rows"] = _rows(found.table, bigram, corpus)
    return numbers


def _rows(table: torch.Tensor, bigram: KneserNeyBigram, corpus: data.Corpus) -> dict:
    """KL(P̂ || Q̂) in nats of the most frequent words' rows, by word."""
    counts = torch.bincount(corpus.train, minlength=len(corpus.vocab))
    words = counts.argsort(descending=True, stable=True)[:FREQUENT]
    target = bigram(words).double()
    kl = (target * (target.log() - table[words].double())).sum(1)
    return {
        corpus.vocab[w]: round(value, 4)
        for w, value in zip(words.tolist(), kl.tolist(), strict=True)
    }


def run(unit: dict, config: dict, device: torch.device) -> dict:
    """Train one arm on one seed's text, and read off everything that is reported."""
    corpus, term, settings = prepared(config, **unit, device=device)
    try:
        trained = train(corpus, term, settings, resume.checkpoint(unit["arm"]))
    except Diverged as error:
        return {"diverged": str(error)}
    numbers = _read_off(trained.model, corpus, settings, config.get("induced", True))
    if device.type == "cuda":
        numbers["how"] = WAY.get()
    numbers["epochs"] = [
        {key: round(entry[key], 4) for key in ("train", "valid", "lr", "cpu_s", "wall_s")}
        for entry in trained.history
    ]
    return numbers


def check(config: dict) -> None:
    """Raise ValueError for an unknown corpus, or an arm that cannot be built: each is, on a toy
    text.
    """
    options.one_of("corpus", config["corpus"], (*data.SOURCES, "topics"))
    options.rows("sizes", config["sizes"], 2)
    if config["corpus"] == "ptb":
        options.at_most("sizes", [lines for lines, _ in config["sizes"]], LINES)
    options.each("settings", config["settings"], KNOWN)
    for name, arm in config["arms"].items():
        try:
            settings = settings_of({**config["settings"], **arm}, 0)
            tokens = torch.arange(2 * settings.batch + 2) % 4
            toy = data.Corpus("toy", tokens, tokens, tokens, list("abcd"))
            build(arm, toy, settings, 0)
        except (TypeError, ValueError) as error:
            raise ValueError(f"arms/{name} cannot be: {error}") from error


def units(config: dict, seed: int) -> list[dict]:
    """Arms by sizes and seeds; the arms of a seed stand together."""
    return [
        {"arm": arm, "lines": lines, "seed": seed + s}
        for lines, seeds in config["sizes"]
        for s in range(seeds)
        for arm in config["arms"]
    ]


def _number(value: Callable[[Row], float], digits: int = 2) -> Callable[[Row], str]:
    """A column of text; of a run that diverged nothing."""
    return lambda row: "" if "diverged" in row else f"{value(row):.{digits}f}"


table = Table(
    "",
    {
        "arm": "{arm}",
        "lines": "{lines}",
        "seed": "{seed}",
        "valid": lambda row: "diverged" if "diverged" in row else f"{row['valid']:.2f}",
        "test": _number(lambda row: row["test"]),
        "induced test": _number(lambda row: row.get("induced/test/safe", math.nan)),
        "mixture test": _number(lambda row: row["mixture/test"]),
        "epochs": _number(lambda row: len(row["epochs"]), 0),
        "CPU s": _number(lambda row: sum(epoch["cpu_s"] for epoch in row["epochs"]), 0),
    },
)
"""A row for each training run."""
