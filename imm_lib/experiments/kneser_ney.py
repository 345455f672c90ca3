"""The restricted model of the language experiments: Kneser-Ney on the Penn Treebank (Table 5's last
column).
"""

import time

import torch

from imm_lib import data
from imm_lib.experiments import Experiment, options
from imm_lib.experiments.paper import TABLE_5
from imm_lib.experiments.table import Table
from imm_lib.targets import KneserNeyBigram

PAPER = {split: row["Kneser-Ney"] for split, row in TABLE_5.items()}
"""Perplexities that the paper prints in Table 5."""

PAPER_INDUCED_LSTM = {split: row["none"] for split, row in TABLE_5.items()}
"""The same table's perplexities of the bigram that an LSTM trained without IMM induces."""

CONVENTIONS = ("safe", "zero-loss", "drop", "paper")


def _units(config: dict, seed: int) -> list[dict]:
    return [
        {"part": "fit"},
        *({"part": "perplexity", "split": split} for split in config["splits"]),
    ]


def _run(unit: dict, config: dict, device: torch.device) -> dict:
    corpus = data.load(config["corpus"])
    train = corpus.train.to(device)
    start = time.perf_counter()
    model = KneserNeyBigram.fit(train, len(corpus.vocab))
    seconds = time.perf_counter() - start
    if unit["part"] == "fit":
        return {
            "tokens": len(corpus.train),
            "vocabulary": len(corpus.vocab),
            "fit_s": seconds,
            "discounts": list(model.discounts),
            "bigrams": len(model.keys),
            "stored_bytes": sum(b.numel() * b.element_size() for b in model.held()),
            "dense_bytes": 4 * model.vocab_size**2,
            "orphans": [corpus.vocab[i] for i in model.orphans.nonzero().flatten().tolist()],
        }
    tokens = getattr(corpus, unit["split"]).to(device)
    return {
        "tokens": len(tokens),
        "orphan_tokens": int(model.orphans[tokens[1:]].sum()),
        **{convention: model.perplexity(tokens, convention) for convention in CONVENTIONS},
    }


def _check(config: dict) -> None:
    options.one_of("corpus", config["corpus"], data.SOURCES)
    options.each("splits", config["splits"], data.SPLITS)


_TABLE = Table(
    "",
    {
        "split": "{split}",
        "printed": lambda row: f"{PAPER[row['split']]:.2f}",
        **{convention: f"{{{convention}:.2f}}" for convention in CONVENTIONS},
        "paper - printed": lambda row: f"{row['paper'] - PAPER[row['split']]:+.3f}",
    },
    only=lambda row: row["part"] == "perplexity",
)

EXPERIMENTS = [
    Experiment(
        name="kneser-ney",
        scales={
            "full": {"corpus": "ptb", "splits": ["train", "valid", "test"]},
            "ci": {"corpus": "ptb", "splits": ["valid"]},
        },
        units=_units,
        run=_run,
        table=_TABLE,
        check=_check,
    )
]
