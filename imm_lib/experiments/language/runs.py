"""Units of the language experiments: one training run, or one comparison of gradients, and their
tables.
"""

import functools
import math
import tempfile
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch

from imm_lib import data
from imm_lib.experiments import options, resume
from imm_lib.experiments.language import fidelity, fused, measures, terms
from imm_lib.experiments.language.histories import Histories
from imm_lib.experiments.language.text import Stream, part, topics
from imm_lib.experiments.language.training import HOW, Diverged, Settings, Trained, train
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


def build(spec: dict, corpus: data.Corpus, settings: Settings, seed: int) -> terms.Term:
    """The term that ``spec`` names; raises ValueError listing the known ones."""
    options = {
        key: spec[key] for key in spec if key not in {f.name for f in fields(Settings)} | {"term"}
    }
    bigram, size = KneserNeyBigram.fit(corpus.train, len(corpus.vocab)), len(corpus.vocab)

    def sampled(
        lam: float, steps: int = 1, cache: bool = True, kind: type = terms.Sampled, **rest
    ) -> terms.Term:
        stream = Stream(corpus.train, settings.batch, settings.unroll)
        return kind(bigram, lam, Histories(stream, size, steps, cache), seed=seed, **rest)

    def both(lam: float) -> terms.Term:
        halves = (
            terms.MovingAverage(bigram, lam / 2),
            terms.MovingAverage(_skip(corpus), lam / 2, lag=1),
        )
        return terms.Several(halves)

    known: dict[str, Callable[..., terms.Term]] = {
        "none": terms.Term,
        "noising": lambda **rest: terms.Noising(corpus.train, size, seed=seed, **rest),
        "reverse-KD": lambda **rest: terms.Uncorrected(bigram, **rest),
        "moving average": lambda **rest: terms.MovingAverage(bigram, **rest),
        "fused": functools.partial(fused.Fused, bigram, tokens=corpus.train),
        "skip-bigram": lambda **rest: terms.MovingAverage(_skip(corpus), lag=1, **rest),
        "both": both,
        "serialized": lambda **rest: terms.Serialized(bigram, **rest),
        "sampled": sampled,
        "sampled, fused": functools.partial(sampled, kind=fused.FusedSampled),
        "sampled, uncorrected": functools.partial(sampled, kind=terms.SampledUncorrected),
    }
    name = spec.get("term", "none")
    if name not in known:
        raise ValueError(f"term must be one of {', '.join(known)}, got {name!r}")
    return known[name](**options)


def _skip(corpus: data.Corpus) -> KneserNeyBigram:
    """The Kneser-Ney skip-bigram: in the text's every other word, neighbours are two places
    apart.
    """
    return KneserNeyBigram.fit(
        torch.cat([corpus.train[::2], corpus.train[1::2]]), len(corpus.vocab)
    )


def _settings(spec: dict, seed: int) -> Settings:
    return Settings(
        **{f.name: spec[f.name] for f in fields(Settings) if f.name in spec} | {"seed": seed}
    )


def _read_off(
    trained: Trained, corpus: data.Corpus, settings: Settings, induced: bool = True
) -> dict:
    """Everything that is reported of the weights of the best epoch; of the induced bigram, a table
    of V x V, where it is asked for.
    """
    bigram = KneserNeyBigram.fit(corpus.train, len(corpus.vocab))
    streams = {s: Stream(getattr(corpus, s), settings.batch, settings.unroll) for s in data.SPLITS}
    log_q = {s: measures.label_log_probs(trained.model, streams[s]) for s in ("valid", "test")}
    log_p = {s: bigram.log_prob(streams[s].words, streams[s].labels) for s in ("valid", "test")}

    def mixed(split: str, weight: float) -> float:
        return measures.perplexity(measures.mixture(log_q[split], log_p[split], weight))

    weight = min(measures.WEIGHTS, key=lambda w: mixed("valid", w))
    rows = {}
    if induced:
        found = measures.induced(trained.model, streams["train"], bigram)
        rows["induced"] = measures.induced_perplexities(found, corpus)
        if settings.seed == 0:
            rows["rows"] = _rows(found.table, bigram, corpus)
    return {
        **rows,
        "valid": mixed("valid", 0.0),
        "test": mixed("test", 0.0),
        "mixture": {
            "weight": weight,
            "valid": mixed("valid", weight),
            "test": mixed("test", weight),
        },
        "bigram": {s: bigram.perplexity(getattr(corpus, s)) for s in data.SPLITS},
        "vocabulary": len(corpus.vocab),
        "words": len(corpus.train),
        "parameters": sum(p.numel() for p in trained.model.parameters()),
    }


def _rows(table: torch.Tensor, bigram: KneserNeyBigram, corpus: data.Corpus) -> dict:
    """KL(P̂ || Q̂) in nats of the most frequent words' rows, by word."""
    words = torch.bincount(corpus.train, minlength=len(corpus.vocab)).argsort(
        descending=True, stable=True
    )[:FREQUENT]
    target = bigram(words).double()
    kl = (target * (target.log() - table[words].double())).sum(1)
    return {
        corpus.vocab[w]: round(value, 4)
        for w, value in zip(words.tolist(), kl.tolist(), strict=True)
    }


def run(unit: dict, config: dict, device: torch.device) -> dict:
    """Train one arm on one seed's text, and read off everything that is reported."""
    spec = {**config["settings"], **config["arms"][unit["arm"]]}
    settings = _settings(spec, unit["seed"])
    least = config.get("least", 2)
    corpus = texts(config["corpus"], unit["lines"], unit["seed"], config["held_out"], least)
    corpus = corpus.to(device)
    term = build(spec, corpus, settings, unit["seed"])
    try:
        trained = train(corpus, term, settings, resume.checkpoint("run"))
    except Diverged as error:
        return {"diverged": str(error)}
    numbers = _read_off(trained, corpus, settings, config.get("induced", True))
    if device.type == "cuda":
        numbers["how"] = asdict(HOW.get())
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
    options.filled("arms", config["arms"])
    known = {f.name for f in fields(Settings)}
    options.each("settings", config["settings"], known)
    for name, arm in config["arms"].items():
        try:
            settings = _settings({**config["settings"], **arm}, 0)
            tokens = torch.arange(2 * settings.batch + 2) % 4
            toy = data.Corpus("toy", tokens, tokens, tokens, list("abcd"))
            build(arm, toy, settings, 0)
        except (TypeError, ValueError) as error:
            raise ValueError(f"arms/{name} cannot be: {error}") from error


def check_fidelity(config: dict) -> None:
    """The same for the texts on which gradients are compared."""
    options.filled("texts", config["texts"])
    for name, case in config["texts"].items():
        options.one_of(f"texts/{name}/corpus", case["corpus"], (*data.SOURCES, "topics"))
        options.each(f"texts/{name}/settings", case["settings"], [f.name for f in fields(Settings)])
        _settings(case["settings"], 0)


def units(config: dict, seed: int) -> list[dict]:
    """Arms by sizes and seeds; the arms of a seed stand together."""
    return [
        {"arm": arm, "lines": lines, "seed": seed + s}
        for lines, seeds in config["sizes"]
        for s in range(seeds)
        for arm in config["arms"]
    ]


def table(result: dict) -> list[list[str]]:
    """A row for each training run."""
    rows = [
        ["arm", "lines", "seed", "valid", "test", "induced test", "mixture test", "epochs", "CPU s"]
    ]
    for entry in result["units"]:
        unit, numbers = entry["unit"], entry["numbers"]
        row = [unit["arm"], str(unit["lines"]), str(unit["seed"])]
        if "diverged" in numbers:
            rows.append([*row, "diverged", *[""] * 5])
            continue
        induced = numbers["induced"]["test"]["safe"] if "induced" in numbers else math.nan
        values = [numbers["valid"], numbers["test"], induced, numbers["mixture"]["test"]]
        seconds = sum(e["cpu_s"] for e in numbers["epochs"])
        rows.append(
            [*row, *(f"{v:.2f}" for v in values), str(len(numbers["epochs"])), f"{seconds:.0f}"]
        )
    return rows


def fidelity_run(unit: dict, config: dict, device: torch.device) -> dict:
    """Every estimator's mean gradient against the exact one, on one model that moving-average IMM
    was training.

    "As in training", tables and states are as it left them, up to an epoch old; elsewhere they are
    of the model itself.
    """
    case = config["texts"][unit["text"]]
    settings, seed, steps, passes = (
        _settings(case["settings"], unit["seed"]),
        unit["seed"],
        case["steps"],
        case["passes"],
    )
    corpus = texts(case["corpus"], case["lines"], seed, case["held_out"]).to(device)
    size = len(corpus.vocab)
    bigram = KneserNeyBigram.fit(corpus.train, size)
    stream = Stream(corpus.train, settings.batch, settings.unroll)
    average = terms.MovingAverage(bigram, 1.0)
    cached = {m: Histories(stream, size, m) for m in steps}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "run.pt"
        before = train(corpus, average, settings, file).last
        for histories in cached.values():
            histories.refresh(before)
        model = train(corpus, average, replace(settings, epochs=settings.epochs + 1), file).last
    # the same columns, read further back
    far = Stream(corpus.train, settings.batch, 10 * settings.unroll)
    exact = fidelity.exact_gradient(model, far, bigram)
    found = {}

    def measure(name: str, term: terms.Term, passes: int = 1, dropout: bool = False) -> None:
        model.train(dropout)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            gradient = fidelity.mean_gradient(model, stream, term.eval().to(device), passes)
        found[name] = fidelity.compare(gradient, exact)

    fresh = terms.MovingAverage(bigram, 1.0, max_ratio=1e6)
    whole: dict[str, Any] = {"words": 0}
    fresh.begin_epoch(model, stream, True)
    measure("exact table", fresh)
    measure("exact table, dropout", fresh, passes, dropout=True)
    measure("moving average, as in training", average, passes, dropout=True)
    measure("moving average, as in training, no dropout", average)
    measure("reverse-KD", terms.Uncorrected(bigram, 1.0))
    measure("reverse-KD, dropout", terms.Uncorrected(bigram, 1.0), passes, dropout=True)
    for m, histories in cached.items():
        measure(
            f"cached, m = {m}, 70 words, as in training",
            terms.Sampled(bigram, 1.0, histories),
            passes,
        )
        histories.refresh(model)
        measure(f"cached, m = {m}", terms.Sampled(bigram, 1.0, histories, **whole), passes)
        measure(
            f"cached, m = {m}, k = 1", terms.Sampled(bigram, 1.0, histories, k=1, **whole), passes
        )
    anew = Histories(stream, size, settings.unroll, cache=False)
    measure(
        f"from nothing, m = {settings.unroll}, 70 words", terms.Sampled(bigram, 1.0, anew), passes
    )
    if case["published"]:
        published = terms.Published(bigram, 1.0, anew)
        published.begin_epoch(model, stream, True)
        measure("as published", published, passes)
    return {
        "estimators": found,
        "exact_norm": exact.norm().item(),
        "valid": _valid(model, corpus, settings),
    }


def _valid(model, corpus: data.Corpus, settings: Settings) -> float:
    """Validation perplexity of a model."""
    stream = Stream(corpus.valid, settings.batch, settings.unroll)
    return measures.perplexity(measures.label_log_probs(model, stream))
