"""POMDPs helping MDPs: the torus of the reinforcement-learning experiments, as tensors and as ``pomdp_py`` models."""

from imm_lib.experiments.grid.torus import HORIZON, MOVES, Torus

__all__ = ["HORIZON", "MOVES", "Torus"]
