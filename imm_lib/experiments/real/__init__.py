"""Real side information: few full examples, and a restricted model from elsewhere."""

from imm_lib.experiments.real import readings, runs, sources, training, tuning

EXPERIMENTS = [*tuning.EXPERIMENTS, *runs.EXPERIMENTS]

__all__ = ["EXPERIMENTS", "readings", "runs", "sources", "training", "tuning"]
