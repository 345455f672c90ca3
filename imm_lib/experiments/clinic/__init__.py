"""The map: every use of a restricted model on many tasks, by one protocol."""

from imm_lib.experiments.clinic import beside, knowledge, runs

EXPERIMENTS = [*runs.EXPERIMENTS, *beside.EXPERIMENTS, *knowledge.EXPERIMENTS]

__all__ = ["EXPERIMENTS"]
