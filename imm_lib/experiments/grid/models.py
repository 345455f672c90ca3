"""The torus as explicit ``pomdp_py`` models: what the tensors of ``torus.py`` are checked
against. A state's ``data`` is (x, y), an action's ``name`` its key in ``MOVES``, an observation's
``data`` x.
"""

import pomdp_py
import torch

from imm_lib.experiments.grid.torus import MOVES, Torus


def states(torus: Torus) -> list[pomdp_py.SimpleState]:
    """All states, in the order of their indices."""
    return [pomdp_py.SimpleState((x, y)) for x in range(torus.size) for y in range(torus.size)]


def actions() -> list[pomdp_py.SimpleAction]:
    """All actions, in the order of their indices."""
    return [pomdp_py.SimpleAction(name) for name in MOVES]


def observations(torus: Torus) -> list[pomdp_py.SimpleObservation]:
    """All observations, in the order of their indices."""
    return [pomdp_py.SimpleObservation(x) for x in range(torus.size)]


class Transition(pomdp_py.DetTransitionModel):
    """Moves that wrap around."""

    def __init__(self, torus: Torus):
        super().__init__(epsilon=0.0)
        self.size = torus.size

    def sample(
        self, state: pomdp_py.SimpleState, action: pomdp_py.SimpleAction
    ) -> pomdp_py.SimpleState:
        """The state that the move leads to."""
        (x, y), (dx, dy) = state.data, MOVES[action.name]
        return pomdp_py.SimpleState(((x + dx) % self.size, (y + dy) % self.size))


class Sight(pomdp_py.DetObservationModel):
    """The agent sees x and nothing of y."""

    def __init__(self):
        super().__init__(epsilon=0.0)

    def sample(
        self, next_state: pomdp_py.SimpleState, action: pomdp_py.SimpleAction
    ) -> pomdp_py.SimpleObservation:
        """The x of the state reached."""
        return pomdp_py.SimpleObservation(next_state.data[0])


class Reward(pomdp_py.DetRewardModel):
    """The landscape at the state that is reached."""

    def __init__(self, torus: Torus):
        self.rows = torus.reward.view(torus.size, torus.size).tolist()

    def reward_func(
        self,
        state: pomdp_py.SimpleState,
        action: pomdp_py.SimpleAction,
        next_state: pomdp_py.SimpleState,
    ) -> float:
        """The reward of the state reached."""
        x, y = next_state.data
        return self.rows[x][y]


def agent(torus: Torus, belief: torch.Tensor | None = None) -> pomdp_py.Agent:
    """A ``pomdp_py`` agent with these models and a (S,) belief, uniform by default."""
    everywhere = torch.full((torus.size**2,), 1 / torus.size**2) if belief is None else belief
    histogram = pomdp_py.Histogram(dict(zip(states(torus), everywhere.tolist(), strict=True)))
    policy = pomdp_py.UniformPolicyModel(actions())
    return pomdp_py.Agent(histogram, policy, Transition(torus), Sight(), Reward(torus))


def environment(torus: Torus, x: int, y: int) -> pomdp_py.Environment:
    """A ``pomdp_py`` environment that starts at (x, y)."""
    return pomdp_py.Environment(pomdp_py.SimpleState((x, y)), Transition(torus), Reward(torus))
