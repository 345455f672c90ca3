"""The language experiments by name: what ``python -m imm_lib run language-…`` computes and stores."""

import functools
import hashlib
import json
import tempfile
from dataclasses import fields, replace
from pathlib import Path

import torch

from imm_lib import data, results
from imm_lib.experiments import Experiment
from imm_lib.experiments.language import fidelity, measures, terms
from imm_lib.experiments.language.histories import Histories
from imm_lib.experiments.language.text import Stream, part, topics
from imm_lib.experiments.language.training import Diverged, Settings, Trained, train
from imm_lib.targets import KneserNeyBigram

LINES = 42_068
"""Training lines of the Penn Treebank."""

FREQUENT = 200
"""Words, the most frequent of the training text, whose induced rows are looked at one by one."""


@functools.lru_cache(maxsize=1)
def texts(corpus: str, lines: int, seed: int, held_out: int | None) -> data.Corpus:
    """The seed's own part of the training lines, a fifth of the corpus away from the next seed's; or all of them.

    The learning rate follows the first ``held_out`` validation lines. Of "topics", lines are words.
    """
    if corpus == "topics":
        draws = {s: topics(lines, 3 * seed + i) for i, s in enumerate(data.SPLITS)}
        return data.Corpus(corpus, vocab=[str(word) for word in range(40)], **draws)
    whole = data.load(corpus)
    if lines >= LINES and corpus == "ptb":
        return part(whole, LINES, 0, held_out, least=1)
    ends = int((whole.train == whole.vocab.index("<eos>")).sum())
    return part(whole, lines, seed * (ends // 5), held_out)


def build(spec: dict, corpus: data.Corpus, settings: Settings, seed: int) -> terms.Term:
    """The term that ``spec`` names; raises ValueError listing the known ones."""
    options = {key: spec[key] for key in spec if key not in {f.name for f in fields(Settings)} | {"term"}}
    bigram, size = KneserNeyBigram.fit(corpus.train, len(corpus.vocab)), len(corpus.vocab)

    def sampled(lam: float, steps: int = 1, cache: bool = True, kind: type = terms.Sampled, **rest) -> terms.Term:
        stream = Stream(corpus.train, settings.batch, settings.unroll)
        return kind(bigram, lam, Histories(stream, size, steps, cache), seed=seed, **rest)

    known = {
        "none": terms.Term,
        "noising": lambda **rest: terms.Noising(corpus.train, size, seed=seed, **rest),
        "reverse-KD": lambda **rest: terms.Uncorrected(bigram, **rest),
        "moving average": lambda **rest: terms.MovingAverage(bigram, **rest),
        "serialized": lambda **rest: terms.Serialized(bigram, **rest),
        "sampled": sampled,
        "sampled, uncorrected": functools.partial(sampled, kind=terms.SampledUncorrected),
    }
    name = spec.get("term", "none")
    if name not in known:
        raise ValueError(f"term must be one of {', '.join(known)}, got {name!r}")
    return known[name](**options)


def _settings(spec: dict, seed: int) -> Settings:
    return Settings(**{f.name: spec[f.name] for f in fields(Settings) if f.name in spec} | {"seed": seed})


def _checkpoint(unit: dict, spec: dict, device: torch.device) -> Path:
    """The unit's own file, which the same code and configuration finds again."""
    identity = json.dumps([unit, spec, str(device), results.code()], sort_keys=True)
    return results.folder() / ".partial" / f"{hashlib.sha256(identity.encode()).hexdigest()[:16]}.pt"


def _read_off(trained: Trained, corpus: data.Corpus, settings: Settings, device: torch.device) -> dict:
    """Everything that is reported of the weights of the best epoch."""
    bigram = KneserNeyBigram.fit(corpus.train, len(corpus.vocab)).to(device)
    streams = {s: Stream(getattr(corpus, s).to(device), settings.batch, settings.unroll) for s in data.SPLITS}
    log_q = {s: measures.label_log_probs(trained.model, streams[s]) for s in ("valid", "test")}
    log_p = {s: bigram.log_prob(streams[s].words, streams[s].labels) for s in ("valid", "test")}

    def mixed(split: str, weight: float) -> float:
        return measures.perplexity(measures.mixture(log_q[split], log_p[split], weight))

    weight = min(measures.WEIGHTS, key=lambda w: mixed("valid", w))
    found = measures.induced(trained.model, streams["train"], bigram)
    rows = {"rows": _rows(found.table, bigram, corpus)} if settings.seed == 0 else {}
    return {
        **rows,
        "valid": mixed("valid", 0.0),
        "test": mixed("test", 0.0),
        "mixture": {"weight": weight, "valid": mixed("valid", weight), "test": mixed("test", weight)},
        "bigram": {s: bigram.perplexity(getattr(corpus, s).to(device)) for s in data.SPLITS},
        "induced": measures.induced_perplexities(found, corpus),
        "vocabulary": len(corpus.vocab),
        "words": len(corpus.train),
        "parameters": sum(p.numel() for p in trained.model.parameters()),
    }


def _rows(table: torch.Tensor, bigram: KneserNeyBigram, corpus: data.Corpus) -> dict:
    """KL(P̂ || Q̂) in nats of the most frequent words' rows, by word."""
    words = torch.bincount(corpus.train, minlength=len(corpus.vocab)).argsort(descending=True, stable=True)[:FREQUENT]
    target = bigram(words.to(table.device)).double()
    kl = (target * (target.log() - table[words.to(table.device)].double())).sum(1)
    return {corpus.vocab[w]: round(value, 4) for w, value in zip(words.tolist(), kl.tolist(), strict=True)}


def _run(unit: dict, config: dict, device: torch.device) -> dict:
    spec = {**config["settings"], **config["arms"][unit["arm"]]}
    settings = _settings(spec, unit["seed"])
    corpus = texts(config["corpus"], unit["lines"], unit["seed"], config["held_out"])
    file = _checkpoint(unit, spec, device)
    try:
        trained = train(corpus, build(spec, corpus, settings, unit["seed"]), settings, device, file)
    except Diverged as error:
        return {"diverged": str(error)}
    numbers = _read_off(trained, corpus, settings, device)
    numbers["epochs"] = [
        {key: round(entry[key], 4) for key in ("train", "valid", "lr", "cpu_s", "wall_s")} for entry in trained.history
    ]
    file.unlink(missing_ok=True)
    return numbers


def _units(config: dict, seed: int) -> list[dict]:
    return [
        {"arm": arm, "lines": lines, "seed": seed + s}
        for lines, seeds in config["sizes"]
        for s in range(seeds)
        for arm in config["arms"]
    ]


def _table(result: dict) -> list[list[str]]:
    rows = [["arm", "lines", "seed", "valid", "test", "induced test", "mixture test", "epochs", "CPU s"]]
    for entry in result["units"]:
        unit, numbers = entry["unit"], entry["numbers"]
        row = [unit["arm"], str(unit["lines"]), str(unit["seed"])]
        if "diverged" in numbers:
            rows.append([*row, "diverged", *[""] * 5])
            continue
        values = [numbers["valid"], numbers["test"], numbers["induced"]["test"]["safe"], numbers["mixture"]["test"]]
        seconds = sum(e["cpu_s"] for e in numbers["epochs"])
        rows.append([*row, *(f"{v:.2f}" for v in values), str(len(numbers["epochs"])), f"{seconds:.0f}"])
    return rows


def _fidelity(unit: dict, config: dict, device: torch.device) -> dict:
    """Every estimator's mean gradient against the exact one, on one model that moving-average IMM was training.

    "As in training", tables and states are as it left them, up to an epoch old; elsewhere they are of the model itself.
    """
    case = config["texts"][unit["text"]]
    settings, seed, steps, passes = (
        _settings(case["settings"], unit["seed"]),
        unit["seed"],
        case["steps"],
        case["passes"],
    )
    corpus = texts(case["corpus"], case["lines"], seed, case["held_out"])
    size = len(corpus.vocab)
    bigram = KneserNeyBigram.fit(corpus.train, size).to(device)
    stream = Stream(corpus.train.to(device), settings.batch, settings.unroll)
    average = terms.MovingAverage(bigram, 1.0)
    cached = {m: Histories(stream, size, m) for m in steps}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "run.pt"
        before = train(corpus, average, settings, device, file).last
        for histories in cached.values():
            histories.refresh(before)
        model = train(corpus, average, replace(settings, epochs=settings.epochs + 1), device, file).last
    far = Stream(corpus.train.to(device), settings.batch, 10 * settings.unroll)  # the same columns, read further back
    exact = fidelity.exact_gradient(model, far, bigram)
    found = {}

    def measure(name: str, term: terms.Term, passes: int = 1, dropout: bool = False) -> None:
        model.train(dropout)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            gradient = fidelity.mean_gradient(model, stream, term.eval().to(device), passes)
        found[name] = fidelity.compare(gradient, exact)

    fresh, whole = terms.MovingAverage(bigram, 1.0, max_ratio=1e6), {"words": 0}
    fresh.begin_epoch(model, stream, True)
    measure("exact table", fresh)
    measure("exact table, dropout", fresh, passes, dropout=True)
    measure("moving average, as in training", average, passes, dropout=True)
    measure("moving average, as in training, no dropout", average)
    measure("reverse-KD", terms.Uncorrected(bigram, 1.0))
    measure("reverse-KD, dropout", terms.Uncorrected(bigram, 1.0), passes, dropout=True)
    for m, histories in cached.items():
        measure(f"cached, m = {m}, 70 words, as in training", terms.Sampled(bigram, 1.0, histories), passes)
        histories.refresh(model)
        measure(f"cached, m = {m}", terms.Sampled(bigram, 1.0, histories, **whole), passes)
        measure(f"cached, m = {m}, k = 1", terms.Sampled(bigram, 1.0, histories, k=1, **whole), passes)
    anew = Histories(stream, size, settings.unroll, cache=False)
    measure(f"from nothing, m = {settings.unroll}", terms.Sampled(bigram, 1.0, anew, **whole), passes)
    if case["published"]:
        published = terms.Published(bigram, 1.0, anew)
        published.begin_epoch(model, stream, True)
        measure("as published", published, passes)
    return {"estimators": found, "exact_norm": exact.norm().item(), "valid": _valid(model, corpus, settings, device)}


def _valid(model, corpus: data.Corpus, settings: Settings, device: torch.device) -> float:
    """Validation perplexity of a model."""
    stream = Stream(corpus.valid.to(device), settings.batch, settings.unroll)
    return measures.perplexity(measures.label_log_probs(model, stream))


def _table_fidelity(result: dict) -> list[list[str]]:
    rows = [["text", "seed", "estimator", "cosine", "error", "norm ratio"]]
    for entry in result["units"]:
        for name, f in entry["numbers"]["estimators"].items():
            values = (f[key] for key in ("cosine", "error", "norm_ratio"))
            rows.append([entry["unit"]["text"], str(entry["unit"]["seed"]), name, *(f"{v:.3f}" for v in values)])
    return rows


_SETTINGS = {"width": 200, "dropout": 0.5, "epochs": 40}
_ARMS = {
    "baseline": {},
    "baseline, lr 0.5": {"lr": 0.5},
    "KN noising": {"term": "noising"},
    **{f"reverse-KD, λ = {lam:g}": {"term": "reverse-KD", "lam": lam} for lam in (0.2, 1.0, 3.0)},
    **{f"moving average, λ = {lam:g}": {"term": "moving average", "lam": lam} for lam in (0.2, 1.0, 3.0)},
    "serialized, λ = 1": {"term": "serialized", "lam": 1.0},
    **{f"cached states, λ = {lam:g}": {"term": "sampled", "lam": lam} for lam in (0.2, 1.0)},
}
_PTB = {"corpus": "ptb", "held_out": 1000, "settings": _SETTINGS}
_QUICK = {"corpus": "ptb", "held_out": 100, "settings": {"width": 16, "dropout": 0.2, "epochs": 2}}
_PAPER = {
    "width": 1500,
    "dropout": 0.65,
    "scale": 0.04,
    "clip": 10.0,
    "decay": 1 / 1.15,
    "epochs": 55,
}


_COMPARED = ("baseline", "reverse-KD, λ = 1", "moving average, λ = 1")
_LATE = {"lam": 1.0, "start_lr": 0.5}  # λ = 1 from the first plateau on: up to there all arms of a seed are one run
_AVERAGE = {**_LATE, "term": "moving average"}
_CACHED = {**_LATE, "term": "sampled", "clip_apart": False}
_PUZZLE = {
    "baseline": {},
    "moving average": _AVERAGE,
    "moving average, memory 500": {**_AVERAGE, "memory": 500},
    "moving average, clipped apart": {**_AVERAGE, "clip_apart": True},
    "moving average, own pass without dropout": {**_AVERAGE, "own_pass": True, "clip_apart": False},
    "cached states": _CACHED,
    "cached states, clipped apart": {**_CACHED, "clip_apart": True},
    "cached states, all words": {**_CACHED, "words": 0},
    "cached states, with dropout": {**_CACHED, "with_dropout": True},
    "cached states, m = 5": {**_CACHED, "steps": 5},
    "cached states, uncorrected": {**_CACHED, "term": "sampled, uncorrected"},
    "cached states, from the first step": {**_CACHED, "start_lr": 1.0},
}
_TOPICS = {
    "corpus": "topics",
    "lines": 4000,
    "held_out": None,
    "settings": {"width": 32, "dropout": 0.3, "scale": 0.5, "batch": 5, "unroll": 20, "epochs": 15},
    "steps": [1, 5, 20],
    "passes": 10,
    "published": True,
}
_PTB_FIDELITY = {
    **{"corpus": "ptb", "lines": 1262, "held_out": 1000, "settings": {**_SETTINGS, "epochs": 20}},
    **{"steps": [1, 5, 35], "passes": 4, "published": False},
}


def _experiment(name: str, description: str, full: dict, gpu: bool = False) -> Experiment:
    """Training runs by arm, size and seed; at the scale "ci" a few words, units and epochs of some of the arms."""
    arms = list(full["arms"])
    quick = {**_QUICK, "sizes": [[100, 1]], "arms": {arm: full["arms"][arm] for arm in arms[:: len(arms) // 2]}}
    return Experiment(name, description, {"full": full, "ci": quick}, _units, _run, _table, gpu)


EXPERIMENTS = [
    _experiment(
        "language-methods",
        "LSTMs of 200 units on 3 % of the Penn Treebank by every method (Tables 1 and 5 in small)",
        {**_PTB, "sizes": [[1262, 5]], "arms": _ARMS},
    ),
    _experiment(
        "language-paper",
        "LSTMs of 1,500 units on the Penn Treebank (Tables 1 and 5 at the paper's scale); needs a GPU",
        {
            "corpus": "ptb",
            "held_out": None,
            "settings": _PAPER,
            "sizes": [[LINES, 2]],
            "arms": {name: _ARMS[name] for name in _ARMS if name != "baseline, lr 0.5"},
        },
        gpu=True,
    ),
    _experiment(
        "language-sizes",
        "the same LSTMs on 1, 10 and 30 % of the lines: where does IMM help most?",
        {
            **_PTB,
            "sizes": [[421, 5], [4207, 2], [12_620, 1]],
            "arms": {name: _ARMS[name] for name in _COMPARED},
        },
    ),
    _experiment(
        "language-puzzle",
        "why gradients that are truer can help less: clipping, dropout, words, steps and memory, one at a time",
        {
            **_PTB,
            "sizes": [[1262, 2]],
            "arms": _PUZZLE,
        },
    ),
    Experiment(
        name="language-fidelity",
        description="gradients of the IMM estimators on a trained language model against the exact one",
        scales={
            "full": {"texts": {"topics": _TOPICS, "PTB": _PTB_FIDELITY}, "seeds": 2},
            "ci": {"texts": {"topics": {**_TOPICS, "lines": 300, "passes": 1}}, "seeds": 1},
        },
        units=lambda config, seed: [
            {"text": text, "seed": seed + s} for text in config["texts"] for s in range(config["seeds"])
        ],
        run=_fidelity,
        table=_table_fidelity,
    ),
]
