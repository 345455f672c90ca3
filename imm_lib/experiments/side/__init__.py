"""What a restricted model is worth: finite worlds, simulation against theory, and real side
information.
"""

from imm_lib.experiments.side import (
    asymptotics,
    choice,
    networks,
    real,
    several,
    sources,
    tuning,
    weights,
)
from imm_lib.experiments.side.finite import LogitWorld, Restriction, complete, fit

EXPERIMENTS = [
    *asymptotics.EXPERIMENTS,
    *several.EXPERIMENTS,
    *choice.EXPERIMENTS,
    *weights.EXPERIMENTS,
    *tuning.EXPERIMENTS,
    *real.EXPERIMENTS,
]

__all__ = [
    "EXPERIMENTS",
    "LogitWorld",
    "Restriction",
    "asymptotics",
    "choice",
    "complete",
    "fit",
    "networks",
    "real",
    "several",
    "sources",
    "tuning",
    "weights",
]
