"""Logistic regression at the paper's scale (Figures 1, 4, 5, 6, 8, 10 and Table 4): problem, terms,
training.
"""

from imm_lib.experiments.logistic import gradients, runs, speed
from imm_lib.experiments.logistic.problem import Data, Plane
from imm_lib.experiments.logistic.training import (
    METHODS,
    descend,
    gradient,
    objective,
    ratio,
    train,
)
from imm_lib.experiments.paper import schedule

EXPERIMENTS = [*runs.EXPERIMENTS, *gradients.EXPERIMENTS, *speed.EXPERIMENTS]
