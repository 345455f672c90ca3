"""IMM on a small real data set (chapter 4): an old system reads one sensor of many cases, a new
one all of few.

Every unit is one random partition of the breast-cancer data that scikit-learn ships: ``old`` cases,
of which only the sensor and the label are used, to fit the restricted model; n ``new`` cases with
all sensors, to train on; cases to choose settings with; cases to test on. All methods of a unit see
the same partition, so that they are paired.
"""

from imm_lib.experiments.sensors.problem import (
    Task,
    candidates,
    fit,
    imm_penalties,
    scores,
    task,
)
from imm_lib.experiments.sensors.runs import EXPERIMENTS

__all__ = [
    "EXPERIMENTS",
    "Task",
    "candidates",
    "fit",
    "imm_penalties",
    "scores",
    "task",
]
