"""What a restricted model is worth: finite worlds, simulation against theory, and real side information."""

from imm_lib.experiments.side import asymptotics
from imm_lib.experiments.side.finite import LogitWorld, Restriction, complete, fit

EXPERIMENTS = [*asymptotics.EXPERIMENTS]

__all__ = ["EXPERIMENTS", "LogitWorld", "Restriction", "asymptotics", "complete", "fit"]
