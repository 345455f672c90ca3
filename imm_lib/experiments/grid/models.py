"""The torus as explicit ``pomdp_py`` models: what the tensors of ``torus.py`` are checked
against.
"""

import pomdp_py
import torch

from imm_lib.experiments.grid.torus import MOVES, Torus


class State(pomdp_py.SimpleState):
    """Where the agent is; ``data`` is (x, y)."""


class Action(pomdp_py.SimpleAction):
    """One of ``MOVES``; ``name`` is its key there."""


class Observation(pomdp_py.SimpleObservation):
    """What the agent sees; ``data`` is x."""


def states(torus: Torus) -> list[State]:
    """All states, in the order of their indices."""
    return [State((x, y)) for x in range(torus.size) for y in range(torus.size)]


def actions() -> list[Action]:
    """All actions, in the order of their indices."""
    return [Action(name) for name in MOVES]


def observations(torus: Torus) -> list[Observation]:
    """All observations, in the order of their indices."""
    return [Observation(x) for x in range(torus.size)]


class Transition(pomdp_py.TransitionModel):
    """Deterministic moves that wrap around."""

    def __init__(self, torus: Torus):
        self.torus = torus

    def sample(self, state: State, action: Action) -> State:
        """The state that the move leads to."""
        step, size = MOVES[action.name], self.torus.size
        return State(tuple((a + b) % size for a, b in zip(state.data, step, strict=True)))

    def probability(self, next_state: State, state: State, action: Action) -> float:
        """1 for that state and 0 for all others."""
        return float(self.sample(state, action) == next_state)

    def get_all_states(self) -> list[State]:
        """All states."""
        return states(self.torus)


class Sight(pomdp_py.ObservationModel):
    """The agent sees x and nothing of y."""

    def __init__(self, torus: Torus):
        self.torus = torus

    def sample(self, next_state: State, action: Action) -> Observation:
        """The x of the state reached."""
        return Observation(next_state.data[0])

    def probability(self, observation: Observation, next_state: State, action: Action) -> float:
        """1 for that x and 0 for all others."""
        return float(observation.data == next_state.data[0])

    def get_all_observations(self) -> list[Observation]:
        """All observations."""
        return observations(self.torus)


class Reward(pomdp_py.RewardModel):
    """The landscape at the state that is reached."""

    def __init__(self, torus: Torus):
        self.rows = torus.reward.view(torus.size, torus.size).tolist()

    def sample(self, state: State, action: Action, next_state: State) -> float:
        """The reward of the state reached."""
        x, y = next_state.data
        return self.rows[x][y]


class Policy(pomdp_py.RolloutPolicy):
    """All actions, anywhere."""

    def get_all_actions(
        self, state: State | None = None, history: tuple | None = None
    ) -> list[Action]:
        """The four moves."""
        return actions()

    def sample(self, state: State) -> Action:
        """A move drawn uniformly from torch's default generator."""
        return actions()[int(torch.randint(len(MOVES), ()))]

    def rollout(self, state: State, history: tuple | None = None) -> Action:
        """The same."""
        return self.sample(state)


def agent(torus: Torus, belief: torch.Tensor | None = None) -> pomdp_py.Agent:
    """A ``pomdp_py`` agent with these models and a (S,) belief, uniform by default."""
    everywhere = torch.full((torus.size**2,), 1 / torus.size**2) if belief is None else belief
    histogram = pomdp_py.Histogram(dict(zip(states(torus), everywhere.tolist(), strict=True)))
    return pomdp_py.Agent(histogram, Policy(), Transition(torus), Sight(torus), Reward(torus))


def environment(torus: Torus, x: int, y: int) -> pomdp_py.Environment:
    """A ``pomdp_py`` environment that starts at (x, y)."""
    return pomdp_py.Environment(State((x, y)), Transition(torus), Reward(torus))
