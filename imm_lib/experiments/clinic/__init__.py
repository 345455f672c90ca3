"""The map: every use of a restricted model on many tasks, by one protocol."""

from imm_lib.experiments.clinic import (
    beside,
    judged,
    knowledge,
    methods,
    protocol,
    reading,
    runs,
    settings,
    splits,
    training,
)
from imm_lib.experiments.clinic.protocol import METHODS

EXPERIMENTS = [
    *runs.EXPERIMENTS,
    *judged.EXPERIMENTS,
    *beside.EXPERIMENTS,
    *knowledge.EXPERIMENTS,
    *splits.EXPERIMENTS,
]

__all__ = [
    "EXPERIMENTS",
    "METHODS",
    "beside",
    "judged",
    "knowledge",
    "methods",
    "protocol",
    "reading",
    "runs",
    "settings",
    "splits",
    "training",
]
