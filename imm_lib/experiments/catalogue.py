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
        "kneser-ney": (
            "modified Kneser-Ney bigram on the Penn Treebank: discounts, size, perplexity by "
            "convention"
        ),
    },
    "logistic": {
        "logistic-sizes": "accuracy against data size, scheduled λ (Figure 1)",
        "logistic-fixed": "accuracy against data size at λ = 1.5 (Table 4)",
        "logistic-search": (
            "noising at λ = 1.5 for many planes: does any rise as late as Table 4's?"
        ),
        "logistic-plane": (
            "Table 4 on the plane (1, 3, 3), whose noising is the nearest of those searched"
        ),
        "logistic-columns": (
            "all three columns of Table 4 for many planes, with soft and redrawn hard labels"
        ),
        "logistic-confirmed": (
            "the nearest settings of logistic-columns on other runs, at all sizes of Table 4"
        ),
        "logistic-lambda": "accuracy and restricted risk against λ / (1 + λ) (Figures 4 and 6)",
        "logistic-quality": "targets of lower quality, and a λ lowered with them (Figure 8)",
        "logistic-variants": (
            "serialized and moving-average IMM beside exact IMM and noising (Figure 10)"
        ),
        "logistic-stability": "accuracy against refresh period and momentum of the table",
        "logistic-extra-data": "how many more points the baseline needs for the accuracy of IMM",
        "logistic-gradients": (
            "bias and variance of every estimator's gradient, one data point a step"
        ),
        "bench-logistic": "CPU seconds of Figure 1's sweep, batched and as a loop over runs",
    },
    "grid": {
        "grid-figures": (
            "REINFORCE with and without IMM on the torus, every cell of Figures 2 and 9"
        ),
        "grid-beyond": (
            "split ties, reverse distillation, a critic, and the weight of the term, by "
            "exact returns"
        ),
        "grid-divergences": (
            "the choice of divergence, between induced policies and between the policies themselves"
        ),
        "grid-sizes": "the same on tori of 21 and 51",
        "bench-grid": (
            "CPU seconds of the grid's figures, and of learning against the size of the grid"
        ),
    },
    "language": {
        "language-methods": (
            "LSTMs of 200 units on 3 % of the Penn Treebank by every method (Tables 1 and 5 "
            "in small)"
        ),
        "language-paper": (
            "LSTMs of 1,500 units on the Penn Treebank (Tables 1 and 5 at the paper's "
            "scale); needs a GPU"
        ),
        "language-sizes": "the same LSTMs on 1 and 10 % of the lines: where does IMM help most?",
        "language-large": "the same LSTMs on 30 % of the lines: where does IMM help most?",
        "language-puzzle": (
            "why gradients that are truer can help less: clipping, dropout, words, steps and "
            "memory, one at a time"
        ),
        "language-rate": "the puzzle's arms with one course of the learning rate for all",
        "language-skip": (
            "a bigram, a skip-bigram and both beside small LSTMs on a synthetic text of four topics"
        ),
        "language-seen": (
            "labels seen after a word corrected, the others distilled: 3 % of the lines"
        ),
        "language-seen-sizes": (
            "labels seen after a word corrected, the others distilled: 10 % of the lines"
        ),
        "language-seen-line": (
            "which pairs to correct, and how much to weigh the others: 3 % of the lines"
        ),
        "language-wikitext": (
            "LSTMs on 3 % of WikiText-2 with its vocabulary of 33,278 words, whose table of "
            "pairs is sparse"
        ),
        "language-dropout": "dropout × λ on 1 % of the lines: does IMM help at the best dropout?",
        "language-frontier": (
            "extended contexts × how often the term acts, on 1 % of the lines: quality against cost"
        ),
        "language-snippets": (
            "a transformer that reads three words helps one that reads twenty and has little "
            "long text"
        ),
        "language-fidelity": (
            "gradients of the IMM estimators on a trained language model against the exact one"
        ),
        "language-profile": (
            "seconds of an epoch of the paper's LSTMs, and in what it pays to compute; for a GPU"
        ),
        "bench-language": (
            "time and memory of a language model's training step with each term, as ratios "
            "in one process"
        ),
        "bench-fused": ("time and memory of a fused last layer with IMM, as ratios in one process"),
    },
    "masked": {
        "masked-pretrain": (
            "a masked-LM head for the encoder of PyPI, trained on WikiText-2 with the encoder"
        ),
        "masked-premise": (
            "does the target know what the model's induced bigram does not? before and after "
            "pretraining"
        ),
        "masked-choice": (
            "the weight of masked words, and λ, by held-out examples of CoLA's training file"
        ),
        "masked-choice-mrpc": "the same for MRPC, and λ for noising too",
        "masked-cola": (
            "fine-tuning on CoLA: the task alone, with masked words, with IMM, noising, and "
            "a control"
        ),
        "masked-rte": (
            "fine-tuning on RTE: the task alone, with masked words, with IMM, noising, and a "
            "control"
        ),
        "masked-mrpc": (
            "fine-tuning on MRPC: the task alone, with masked words, with IMM, noising, and "
            "a control"
        ),
        "masked-qnli-small": (
            "fine-tuning on QNLI-small: the task alone, with masked words, with IMM, "
            "noising, and a control"
        ),
        "masked-cola-all": (
            "the same on all examples of CoLA, by the default encoder (Table 2); for a GPU"
        ),
        "masked-mrpc-all": (
            "the same on all examples of MRPC, by the default encoder (Table 2); for a GPU"
        ),
        "masked-rte-all": (
            "the same on all examples of RTE, by the default encoder (Table 2); for a GPU"
        ),
        "masked-paper": (
            "BERT base on all of CoLA, MRPC, RTE and QNLI (Table 2); needs a GPU and a model hub"
        ),
    },
    "finite": {
        "worth-asymptotics": (
            "excess risk of IMM on a finite world, simulated and by theory, over n, λ, m, "
            "with π known or not"
        ),
        "worth-noising": "the floor of noising's excess risk: infinite data, and simulated",
        "side-several": (
            "excess risk with several restricted models, coarser ones and views that are no feature"
        ),
        "side-divergences": (
            "divergences on induced models and on the model itself: excess risk, accuracy "
            "and calibration"
        ),
        "side-weights": (
            "rules that choose λ: the paper's schedule, m/n, plug-in, cross-validation, "
            "validation gradient"
        ),
    },
    "sensors": {
        "sensors": (
            "breast-cancer data, one sensor of many cases helps all sensors of few (chapter 4)"
        ),
    },
    "clinic": {
        "map-cube": (
            "every use of a restricted model on the cube, all tuned alike: two planes, three sizes"
        ),
        "map-grid": (
            "every use of a policy that knows one coordinate, all tuned alike, at three budgets"
        ),
        "map-tables": (
            "every use of a restricted model on six tables, linear models and networks, all "
            "tuned alike"
        ),
        "map-large": "the same on the largest table, with 500 and 2,000 training cases",
        "map-text": (
            "every use of a bigram that the language experiments train, chosen on validation text"
        ),
        "map-judged": (
            "the first choice of worth.compare and the decision of premise.lead on the splits "
            "of map-tables"
        ),
        "map-decay": "IMM beside weight decay: every λ at every decay, on tables and the cube",
        "map-frontier": (
            "how many contexts, how often: accuracy on the cube against the contexts run"
        ),
        "knowledge-means": (
            "a restricted regressor on a linear twin: induced means, reverse distillation and "
            "theory"
        ),
        "knowledge-unlabelled": (
            "extended contexts without labels beside n = 100: the price of a counted law, and "
            "theory"
        ),
        "knowledge-coarse": (
            "a restricted model to which three of five classes are one, beside one that tells "
            "them apart"
        ),
        "side-tuning": (
            "the rules that choose λ on real tables: breast cancer and wine, logistic regression"
        ),
        "side-shift": (
            "a restricted model from another population: when IMM hurts, and what says so "
            "before training"
        ),
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
