"""Language modelling on the Penn Treebank (Tables 1 and 5): texts, models, histories, terms,
training, results.
"""

from imm_lib.experiments import paper
from imm_lib.experiments.language import (
    arms,
    fidelity,
    measures,
    profile,
    readings,
    snippets,
    speed,
)
from imm_lib.experiments.language.fused import Fused, FusedSampled
from imm_lib.experiments.language.histories import Histories
from imm_lib.experiments.language.models import LSTM, MODELS, LanguageModel, Transformer
from imm_lib.experiments.language.terms import (
    MovingAverage,
    Noising,
    OwnPass,
    Published,
    Sampled,
    Serialized,
    Several,
    Term,
    Uncorrected,
)
from imm_lib.experiments.language.text import Block, Stream, part, topics
from imm_lib.experiments.language.training import Diverged, Settings, Trained, train
from imm_lib.experiments.training import without_dropout

EXPERIMENTS = [
    *arms.EXPERIMENTS,
    *snippets.EXPERIMENTS,
    *fidelity.EXPERIMENTS,
    *speed.EXPERIMENTS,
    *profile.EXPERIMENTS,
]

__all__ = [
    "EXPERIMENTS",
    "LSTM",
    "MODELS",
    "Block",
    "Diverged",
    "Fused",
    "FusedSampled",
    "Histories",
    "LanguageModel",
    "MovingAverage",
    "Noising",
    "OwnPass",
    "Published",
    "Sampled",
    "Serialized",
    "Settings",
    "Several",
    "Stream",
    "Term",
    "Trained",
    "Transformer",
    "Uncorrected",
    "fidelity",
    "measures",
    "paper",
    "part",
    "readings",
    "snippets",
    "topics",
    "train",
    "without_dropout",
]
