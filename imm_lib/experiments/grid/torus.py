"""The torus of the reinforcement-learning experiments: an agent knows where it is, or one
coordinate only (App. D.3).

The POMDP agent knows x and holds a uniform belief over y; moves are deterministic and wrap around,
so that its belief stays uniform and x is all its state. Returns are exact: backward sweeps instead
of rollouts.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from imm_lib import checks, distributions
from imm_lib.targets import FinitePOMDP

MOVES = {"up": (0, 1), "down": (0, -1), "left": (-1, 0), "right": (1, 0)}
"""Actions in the order of their indices, as steps in x and y."""

HORIZON = 22
"""Undiscounted steps of the paper's evaluation."""


@dataclass(frozen=True)
class Torus:
    """An N x N grid that wraps around, with one peak of reward in its middle. State x, y has the
    index x N + y.

    The reward of a move is the density of a Gaussian, of covariance ``width`` times the identity,
    at the state that is reached; the grid covers [-2, 2] in both directions.

    Raises:
        TypeError, ValueError: N is not an int of at least 3, or the width not a positive number.
    """

    size: int = 11
    width: float = 0.1
    device: str | torch.device = "cpu"  # of its tensors

    def __post_init__(self):
        if checks.count("size", self.size) < 3:
            raise ValueError(f"size must be at least 3, got {self.size}")
        checks.number("width", self.width, 0, open_low=True)

    def to(self, device: str | torch.device) -> "Torus":
        """The same world with its tensors on another device."""
        return replace(self, device=device)

    @cached_property
    def reward(self) -> Tensor:
        """(S,) reward of reaching each state."""
        line = torch.linspace(-2, 2, self.size, dtype=torch.float64)
        square = line[:, None] ** 2 + line**2
        density = torch.exp(-square / (2 * self.width)) / (2 * torch.pi * self.width)
        return density.flatten().to(self.device)

    @cached_property
    def after(self) -> Tensor:
        """(A, S) the state that each action leads to."""
        x, y = torch.meshgrid(torch.arange(self.size), torch.arange(self.size), indexing="ij")
        steps = [
            ((x + dx) % self.size) * self.size + (y + dy) % self.size for dx, dy in MOVES.values()
        ]
        return torch.stack(steps).flatten(1).to(self.device)

    @cached_property
    def belief(self) -> Tensor:
        """(N, S) the belief of an agent that knows x: uniform over y. Row x is also π(e|s) of the
        short context x.
        """
        eye = torch.eye(self.size, dtype=torch.float64, device=self.device)
        return eye.repeat_interleave(self.size, 1) / self.size

    def pomdp(self) -> FinitePOMDP:
        """The tensors; what is observed is x."""
        actions, states = self.after.shape
        transition = torch.nn.functional.one_hot(self.after, states).double()
        eye = torch.eye(self.size, dtype=torch.float64, device=self.device)
        observation = eye.repeat_interleave(self.size, 0).expand(actions, -1, -1)
        return FinitePOMDP.of(transition, observation, self.reward[self.after])

    def returns(self, policy: Tensor, steps: int = HORIZON) -> Tensor:
        """(..., S, A) action probabilities -> (...) exact expected sum of rewards over ``steps``
        moves, uniform start.

        Raises:
            TypeError, ValueError: a policy of another shape or no distribution.
        """
        actions, states = self.after.shape
        if checks.floating("policy", policy).shape[-2:] != (states, actions):
            raise ValueError(
                f"policy must end in (S, A) = {(states, actions)}, got {checks.describe(policy)}"
            )
        policy = distributions.probabilities("policy", policy).double()
        after, reward = self.after.T.to(policy.device), self.reward.to(policy.device)
        value = policy.new_zeros(policy.shape[:-1])
        for _ in range(checks.count("steps", steps)):
            value = (policy * (reward[after] + value[..., after])).sum(-1)
        return value.mean(-1)

    def optimum(self, steps: int = HORIZON) -> float:
        """The largest expected return of any policy that may change with time, from a uniform
        start.
        """
        value = torch.zeros_like(self.reward)
        for _ in range(checks.count("steps", steps)):
            value = (self.reward + value)[self.after].amax(0)
        return value.mean().item()
