"""What a restricted model is worth: finite worlds, simulation against theory, and real side information."""

from imm_lib.experiments.side import asymptotics, several
from imm_lib.experiments.side.finite import LogitWorld, Restriction, complete, fit

EXPERIMENTS = [*asymptotics.EXPERIMENTS, *several.EXPERIMENTS]

__all__ = ["EXPERIMENTS", "LogitWorld", "Restriction", "asymptotics", "complete", "fit", "several"]
