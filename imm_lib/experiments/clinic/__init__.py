"""The map: every use of a restricted model on many tasks, by one protocol."""

from imm_lib.experiments.clinic import beside, judged, knowledge, runs

EXPERIMENTS = [*runs.EXPERIMENTS, *judged.EXPERIMENTS, *beside.EXPERIMENTS, *knowledge.EXPERIMENTS]

__all__ = ["EXPERIMENTS"]
