"""The map: every use of a restricted model on many tasks, by one protocol."""

from imm_lib.experiments.clinic import runs

EXPERIMENTS = [*runs.EXPERIMENTS]

__all__ = ["EXPERIMENTS"]
