"""The map: every use of a restricted model on many tasks, by one protocol."""

from imm_lib.experiments.clinic import beside, judged, knowledge, runs, splits

EXPERIMENTS = [
    *runs.EXPERIMENTS,
    *judged.EXPERIMENTS,
    *beside.EXPERIMENTS,
    *knowledge.EXPERIMENTS,
    *splits.EXPERIMENTS,
]
