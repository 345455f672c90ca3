"""What a restricted model is worth, on finite worlds: simulations beside the theory."""

from imm_lib.experiments.finite import penalties, several, simulations, tuning
from imm_lib.experiments.finite.worlds import (
    LogitWorld,
    Restriction,
    by_view,
    complete,
    fit,
    share,
)

EXPERIMENTS = [
    *simulations.EXPERIMENTS,
    *several.EXPERIMENTS,
    *penalties.EXPERIMENTS,
    *tuning.EXPERIMENTS,
]

__all__ = ["EXPERIMENTS", "LogitWorld", "Restriction", "by_view", "complete", "fit", "share"]
