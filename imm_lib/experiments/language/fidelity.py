"""How true an estimator's gradient is: against the exact gradient of the IMM risk, at weights that
stand still.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from imm_lib import data
from imm_lib.experiments import Experiment, options
from imm_lib.experiments.language import runs, terms
from imm_lib.experiments.language.histories import Histories
from imm_lib.experiments.language.measures import induced, label_log_probs, perplexity
from imm_lib.experiments.language.models import LanguageModel
from imm_lib.experiments.language.terms import Term
from imm_lib.experiments.language.text import Block, Stream
from imm_lib.experiments.language.training import train
from imm_lib.experiments.table import Table
from imm_lib.experiments.training import without_dropout
from imm_lib.targets import KneserNeyBigram


def _flat(model: LanguageModel, parts: Iterator[Tensor]) -> Tensor:
    """The gradient of the sum of ``parts`` by all parameters, one vector; each part's graph is
    freed after it.
    """
    model.zero_grad(set_to_none=True)
    for part in parts:
        part.backward()
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    model.zero_grad(set_to_none=True)
    return torch.cat([g.flatten().double() for g in grads])


def exact_gradient(model: LanguageModel, stream: Stream, bigram: KneserNeyBigram) -> Tensor:
    """(P,) the gradient of the empirical IMM risk (eq. 9) of a text, without dropout.

    Every place of the text is an extended context of its word, and ``stream.unroll`` bounds how far
    back gradients go. By eq. 13 it is the gradient of a corrected cross-entropy, whose correction
    one sweep has made exact.
    """
    table = induced(model, stream, bigram)

    def parts() -> Iterator[Tensor]:
        with without_dropout(model):
            state = model.begin(stream.batch)
            for block in stream:
                log_q, state = model(block.words, state.detach())
                log_q = log_q.flatten(0, 1)
                yield table(log_q, block.words.flatten(), log_q.detach()) * (
                    block.words.numel() / len(stream.words)
                )

    return _flat(model, parts())


def _added(term: Term, model: LanguageModel, features: Tensor, block: Block) -> Tensor | None:
    """What a term adds at λ = 1 to the pass of the cross-entropy."""
    with_term = term.joint(model, features, block, 1.0)
    without = term.joint(model, features, block, 0.0)
    if with_term is None or without is None:
        return term.shared(model.log_probs(features), block)
    return with_term[0] - without[0]


def mean_gradient(model: LanguageModel, stream: Stream, term: Term, passes: int = 1) -> Tensor:
    """(P,) the mean over blocks of what a term adds at λ = 1, over whole passes; the model's
    dropout as it is set.
    """

    def parts() -> Iterator[Tensor]:
        for _ in range(passes):
            state = model.begin(stream.batch)
            for block in stream:
                features, state = model.hidden(block.words, state.detach())
                share = block.words.numel() / len(stream.words) / passes
                shared = _added(term, model, features, block)
                if shared is not None:
                    yield share * shared
                for part in term.own(model, block):
                    yield share * part

    return _flat(model, parts())


def compare(estimate: Tensor, exact: Tensor) -> dict[str, float]:
    """Cosine, relative error |estimate - exact| / |exact|, and ratio of the norms."""
    return {
        "cosine": torch.cosine_similarity(estimate, exact, dim=0).item(),
        "error": ((estimate - exact).norm() / exact.norm()).item(),
        "norm_ratio": (estimate.norm() / exact.norm()).item(),
    }


def run(unit: dict, config: dict, device: torch.device) -> dict:
    """Every estimator's mean gradient against the exact one, on one model that moving-average IMM
    was training.

    "As in training", tables and states are as it left them, up to an epoch old; elsewhere they are
    of the model itself.
    """
    case, seed = config["texts"][unit["text"]], unit["seed"]
    settings, passes = runs.settings_of(case["settings"], seed), case["passes"]
    corpus = runs.texts(case["corpus"], case["lines"], seed, case["held_out"]).to(device)
    size = len(corpus.vocab)
    bigram = KneserNeyBigram.fit(corpus.train, size)
    stream = Stream(corpus.train, settings.batch, settings.unroll)
    average = terms.MovingAverage(bigram, 1.0)
    cached = {m: Histories(stream, size, m) for m in case["steps"]}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "run.pt"
        before = train(corpus, average, settings, file).last
        for histories in cached.values():
            histories.refresh(before)
        model = train(corpus, average, replace(settings, epochs=settings.epochs + 1), file).last
    # the same columns, read further back
    far = Stream(corpus.train, settings.batch, 10 * settings.unroll)
    exact, found = exact_gradient(model, far, bigram), {}

    def measure(name: str, term: Term, passes: int = 1, dropout: bool = False) -> None:
        model.train(dropout)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            gradient = mean_gradient(model, stream, term.eval().to(device), passes)
        found[name] = compare(gradient, exact)

    def sampled(name: str, histories: Histories, **options: Any) -> None:
        measure(name, terms.Sampled(bigram, 1.0, histories, **options), passes)

    fresh = terms.MovingAverage(bigram, 1.0, max_ratio=1e6)
    distilled = terms.Uncorrected(bigram, 1.0)
    fresh.begin_epoch(model, stream, True)
    measure("exact table", fresh)
    measure("exact table, dropout", fresh, passes, dropout=True)
    measure("moving average, as in training", average, passes, dropout=True)
    measure("moving average, as in training, no dropout", average)
    measure("reverse-KD", distilled)
    measure("reverse-KD, dropout", distilled, passes, dropout=True)
    for m, histories in cached.items():
        sampled(f"cached, m = {m}, 70 words, as in training", histories)
        histories.refresh(model)
        sampled(f"cached, m = {m}", histories, words=0)
        sampled(f"cached, m = {m}, k = 1", histories, words=0, k=1)
    anew = Histories(stream, size, settings.unroll, cache=False)
    sampled(f"from nothing, m = {settings.unroll}, 70 words", anew)
    if case["published"]:
        published = terms.Published(bigram, 1.0, anew)
        published.begin_epoch(model, stream, True)
        measure("as published", published, passes)
    held_out = Stream(corpus.valid, settings.batch, settings.unroll)
    valid = perplexity(label_log_probs(model, held_out))
    return {"estimators": found, "exact_norm": exact.norm().item(), "valid": valid}


def check(config: dict) -> None:
    """Raise ValueError for an unknown corpus, or settings that no training has."""
    for name, case in config["texts"].items():
        options.one_of(f"texts/{name}/corpus", case["corpus"], (*data.SOURCES, "topics"))
        options.each(f"texts/{name}/settings", case["settings"], runs.KNOWN)
        runs.settings_of(case["settings"], 0)


_TOPICS = {
    **{"corpus": "topics", "lines": 4000, "held_out": None},
    "settings": {"width": 32, "dropout": 0.3, "scale": 0.5, "batch": 5, "unroll": 20, "epochs": 15},
    **{"steps": [1, 5, 20], "passes": 10, "published": True},
}
_PTB = {
    **{"corpus": "ptb", "lines": 1262, "held_out": 1000},
    "settings": {"width": 200, "dropout": 0.5, "epochs": 20},
    **{"steps": [1, 5], "passes": 2, "published": False},
}

EXPERIMENTS = [
    Experiment(
        name="language-fidelity",
        scales={
            "full": {"texts": {"topics": _TOPICS, "PTB": _PTB}, "seeds": 2},
            "ci": {"texts": {"topics": {**_TOPICS, "lines": 300, "passes": 1}}, "seeds": 1},
        },
        units=lambda config, seed: [
            {"text": text, "seed": seed + s}
            for text in config["texts"]
            for s in range(config["seeds"])
        ],
        run=run,
        table=Table(
            "estimators/{estimator}",
            {
                "text": "{text}",
                "seed": "{seed}",
                "estimator": "{estimator}",
                "cosine": "{cosine:.3f}",
                "error": "{error:.3f}",
                "norm ratio": "{norm_ratio:.3f}",
            },
        ),
        check=check,
    )
]
