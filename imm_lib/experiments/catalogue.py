"""The experiments' names and one line on each, in the order of the book; a module is imported when
one of its experiments is asked for.

A test compares the names with those that the modules offer.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from imm_lib.experiments.runner import Experiment

CATALOGUE: dict[str, dict[str, str]] = {
    "kneser_ney": {
        "kneser-ney": "modified Kneser-Ney bigram on the Penn Treebank: perplexity by convention",
    },
    "logistic": {
        "logistic-sizes": "accuracy against data size, scheduled λ (Figure 1)",
        "logistic-fixed": "accuracy against data size at λ = 1.5 (Table 4)",
        "logistic-search": "noising at λ = 1.5 on many planes: does any rise as late as Table 4's?",
        "logistic-plane": "Table 4 on the plane (1, 3, 3), whose noising is the nearest found",
        "logistic-columns": "all three columns of Table 4 on many planes, soft and hard labels",
        "logistic-confirmed": "the nearest of logistic-columns on other runs, at all sizes",
        "logistic-lambda": "accuracy and restricted risk against λ / (1 + λ) (Figures 4 and 6)",
        "logistic-quality": "targets of lower quality, and a λ lowered with them (Figure 8)",
        "logistic-variants": "serialized and moving-average IMM beside exact IMM (Figure 10)",
        "logistic-stability": "accuracy against refresh period and momentum of the table",
        "logistic-extra-data": "how many more points the baseline needs for the accuracy of IMM",
        "logistic-gradients": "bias and variance of every estimator's gradient, one point a step",
        "bench-logistic": "CPU seconds of Figure 1's sweep, batched and as a loop over runs",
    },
    "grid": {
        "grid-figures": "REINFORCE with and without IMM on the torus (Figures 2 and 9)",
        "grid-beyond": "split ties, reverse distillation, a critic and λ, by exact returns",
        "grid-divergences": "the divergence, between induced policies and the policies themselves",
        "grid-sizes": "the same on tori of 21 and 51",
        "bench-grid": "CPU seconds of the grid's figures, and of learning by the grid's size",
    },
    "language": {
        "language-methods": "small LSTMs on 3 % of the Penn Treebank by every method (Tables 1, 5)",
        "language-paper": "LSTMs of 1,500 units at the paper's scale (Tables 1, 5); needs a GPU",
        "language-sizes": "the same LSTMs on 1 and 10 % of the lines: where does IMM help most?",
        "language-large": "the same LSTMs on 30 % of the lines: where does IMM help most?",
        "language-full": "LSTMs of 200 units on all of the Penn Treebank, one course of the rate",
        "language-puzzle": "why truer gradients can help less: clipping, dropout, words, steps",
        "language-rate": "the puzzle's arms with one course of the learning rate for all",
        "language-skip": "a bigram, a skip-bigram and both, on a synthetic text of four topics",
        "language-seen": "seen labels of a word corrected, the others distilled: 3 % of the lines",
        "language-seen-sizes": "seen labels of a word corrected, the others distilled: 10 %",
        "language-seen-line": "which pairs to correct, and the weight of the others: 3 %",
        "language-wikitext": "LSTMs on 3 % of WikiText-2, whose table of 33,278 words is sparse",
        "language-dropout": "dropout × λ on 1 % of the lines: does IMM help at the best dropout?",
        "language-frontier": "extended contexts × how often the term acts: quality against cost",
        "language-frequency": "labels × memory on 1 % of the lines: at which words is the gain?",
        "language-snippets": "a transformer of three words helps one of twenty with little text",
        "language-snippets-why": "why reverse distillation won there: one difference at a time",
        "language-fidelity": "gradients of the estimators on a trained LSTM against the exact one",
        "language-profile": "seconds of an epoch of the paper's LSTMs, by precision; for a GPU",
        "bench-language": "time and memory of a language model's step with each term, as ratios",
        "bench-fused": "time and memory of a fused last layer with IMM, as ratios in one process",
    },
    "masked": {
        "masked-pretrain": "a masked-LM head for PyPI's encoder, trained on WikiText-2 with it",
        "masked-premise": "is the target ahead of the model's induced bigram, and until when?",
        "masked-choice": "the weight of masked words, and λ, by held-out examples of CoLA",
        "masked-choice-mrpc": "the same for MRPC, and λ for noising too",
        "masked-cola": "fine-tuning on CoLA: alone, with masked words, IMM, noising, a control",
        "masked-rte": "fine-tuning on RTE: alone, with masked words, IMM, noising, a control",
        "masked-mrpc": "fine-tuning on MRPC: alone, with masked words, IMM, noising, a control",
        "masked-qnli-small": "fine-tuning on QNLI-small: the same arms",
        "masked-cola-all": "the same on all of CoLA, by the default encoder (Table 2); for a GPU",
        "masked-mrpc-all": "the same on all of MRPC, by the default encoder (Table 2); for a GPU",
        "masked-rte-all": "the same on all of RTE, by the default encoder (Table 2); for a GPU",
        "masked-paper": "BERT base on all four tasks (Table 2); needs a GPU and a model hub",
    },
    "finite": {
        "worth-asymptotics": "excess risk of IMM on a finite world, simulated and by theory",
        "worth-noising": "the floor of noising's excess risk: infinite data, and simulated",
        "side-several": "excess risk with several restricted models, and with coarser ones",
        "side-divergences": "divergences on induced models and on the model itself",
        "side-weights": "the rules that choose λ, on a finite world",
    },
    "sensors": {
        "sensors": "breast cancer: one sensor of many cases helps all of few (chapter 4)",
    },
    "clinic": {
        "map-cube": "every use of a restricted model on the cube, all tuned alike",
        "map-grid": "every use of a policy that knows one coordinate, all tuned alike",
        "map-tables": "every use of a restricted model on six tables, all tuned alike",
        "map-large": "the same on the largest table, with 500 and 2,000 training cases",
        "map-text": "every use of a bigram, chosen on validation text",
        "map-judged": "worth.compare and premise.lead, judged on the splits of map-tables",
        "map-decay": "IMM beside weight decay: every λ at every decay, on tables and the cube",
        "map-frontier": "how many contexts, how often: accuracy against the contexts run",
        "knowledge-means": "a restricted regressor on a linear twin, beside theory",
        "knowledge-unlabelled": "extended contexts without labels: the price of a counted law",
        "knowledge-coarse": "a restricted model to which three of five classes are one",
        "side-tuning": "the rules that choose λ, on real tables",
        "side-shift": "a restricted model of another population: what says so beforehand",
    },
    "bench": {
        "bench-core": "speed and memory of the core, as ratios in one process",
    },
}
"""By module of this package: one line by the name of each of its experiments."""


def names() -> list[str]:
    """Every experiment's name."""
    return [name for lines in CATALOGUE.values() for name in lines]


def descriptions() -> dict[str, str]:
    """One line on every experiment, by its name."""
    return {name: line for lines in CATALOGUE.values() for name, line in lines.items()}


def suggestion(word: str, known: Iterable[str]) -> str:
    """``": did you mean X?"`` where a known word is near, else nothing.

    >>> suggestion("logistc-sizes", ["logistic-sizes", "sensors"])
    ': did you mean logistic-sizes?'
    """
    near = difflib.get_close_matches(word, list(known), n=3, cutoff=0.6)
    return f": did you mean {' or '.join(near)}?" if near else ""


def module_of(name: str) -> str | None:
    """The module of this package that offers an experiment; None for one of another place."""
    return next((module for module, lines in CATALOGUE.items() if name in lines), None)


def find(name: str) -> Experiment:
    """The experiment of that name, its module imported.

    Raises:
        ValueError: there is none; the message has the names that are near.
    """
    module = module_of(name)
    if module is None:
        said = suggestion(name, names()) or ": `python -m imm_lib list` names them"
        raise ValueError(f"name must be an experiment, got {name!r}{said}")
    return next(e for e in _offered(module) if e.name == name)


def registry() -> dict[str, Experiment]:
    """Every experiment by name, in the order of the book; imports all of them."""
    return {name: find(name) for name in names()}


def _offered(module: str) -> list[Experiment]:
    return importlib.import_module(f"imm_lib.experiments.{module}").EXPERIMENTS
