"""POMDPs helping MDPs: the torus of the reinforcement-learning experiments, REINFORCE with IMM, and
its results.
"""

from imm_lib.experiments.grid import runs, speed
from imm_lib.experiments.grid.learning import induced_matching, learn, policy_matching
from imm_lib.experiments.grid.runs import target
from imm_lib.experiments.grid.torus import HORIZON, MOVES, Torus

EXPERIMENTS = [*runs.EXPERIMENTS, *speed.EXPERIMENTS]
