"""The fast informed bound: alpha vectors of a finite POMDP, and the policies that they give to a
belief.

It stands in for an exact POMDP policy in the reinforcement-learning experiments (Appendix D.3): the
restricted model is a policy that knows its belief and not its state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from imm_lib import checks, distributions
from imm_lib.precision import KeepsPrecision

if TYPE_CHECKING:
    import pomdp_py


class FinitePOMDP(NamedTuple):
    """A finite POMDP: A actions, S states, O observations, all numbers float64."""

    transition: Tensor  # (A, S, S) P(s'|s, a)
    observation: Tensor  # (A, S, O) P(o|s', a)
    reward: Tensor  # (A, S) expected reward of action a in state s

    @classmethod
    def of(cls, transition: Tensor, observation: Tensor, reward: Tensor) -> FinitePOMDP:
        """The three tensors, checked.

        Raises:
            TypeError: an argument is not a floating-point tensor.
            ValueError: shapes that do not fit, rows that are not distributions, or rewards that are
                not finite.
        """
        distributions.probabilities("transition", transition, "A", "S", "S")
        actions, states, _ = transition.shape
        distributions.probabilities("observation", observation, actions, states, "O")
        checks.finite("reward", checks.floating("reward", reward, actions, states))
        # in float64, as a discount near 1 multiplies what rows lack a thousandfold
        transition, observation = (
            distributions.normalised(table.double()) for table in (transition, observation)
        )
        return cls(transition, observation, reward.double())

    @classmethod
    def read(
        cls, agent: pomdp_py.Agent, states: Sequence, actions: Sequence, observations: Sequence
    ) -> FinitePOMDP:
        """Read the tensors out of a ``pomdp_py`` agent's explicit models.

        A reward that depends on the next state is averaged over it. The reward model's
        ``sample(state, action, next)`` is asked, so it has to be deterministic.

        Raises:
            ValueError: a row that does not sum to 1: a state or an observation is missing from its
                list. Or a reward that differs from one call to the next.
        """

        def table(
            rows: Sequence,
            columns: Sequence,
            entry: Callable[[Hashable, Hashable, Hashable], float],
        ) -> Tensor:
            cells = [
                [[entry(a, row, column) for column in columns] for row in rows] for a in actions
            ]
            return torch.tensor(cells, dtype=torch.float64)

        moves, sees, pays = agent.transition_model, agent.observation_model, agent.reward_model
        transition = table(states, states, lambda a, s, after: moves.probability(after, s, a))
        observation = table(states, observations, lambda a, after, o: sees.probability(o, after, a))
        reward = torch.zeros(transition.shape[:2], dtype=torch.float64)
        for a, s, after in transition.nonzero().tolist():
            found, again = (pays.sample(states[s], actions[a], states[after]) for _ in range(2))
            if found != again:
                raise ValueError(
                    "agent must have a deterministic reward model, or one of mean rewards, got "
                    f"{found} and {again} for one step"
                )
            reward[a, s] += transition[a, s, after] * found
        return cls.of(transition, observation, reward)

    def update(self, belief: Tensor, action: int, observation: int) -> Tensor:
        """(S,) belief after an action and what was then seen (Bayes' rule).

        Raises:
            TypeError, ValueError: the belief does not fit or is no distribution, there is no such
                action or observation, or it has probability 0 under the belief.
        """
        for name, value, size in (
            ("action", action, len(self.observation)),
            ("observation", observation, self.observation.shape[2]),
        ):
            if checks.number(name, value, 0, size - 1) != int(value):
                raise ValueError(f"{name} must be an index in [0, {size}), got {value}")
        belief = self._belief(checks.tensor("belief", belief).unsqueeze(0))[0]
        joint = (belief @ self.transition[action]) * self.observation[action, :, observation]
        if joint.sum() <= 0:
            raise ValueError(
                f"observation {observation} has probability 0 under the belief after action "
                f"{action}"
            )
        return joint / joint.sum()

    def _belief(self, belief: Tensor) -> Tensor:
        states = self.transition.shape[1]
        return distributions.normalised(
            distributions.probabilities("belief", belief, "B", states).double()
        )


class FastInformedBound(KeepsPrecision):
    """Alpha vectors of the fast informed bound, one per action, and a policy on beliefs
    (Hauskrecht, 2000).

    The bound solves, by value iteration,

        α_a(s) = R(s, a) + γ Σ_o max_a' Σ_s' P(o|s', a) P(s'|s, a) α_a'(s'),

    and max_a Σ_s b(s) α_a(s) is an upper bound of the POMDP's value at belief b. The solution is at
    most QMDP's, and the same where moves are deterministic. The alpha vectors kept are nowhere
    below it, so that they are an upper bound too, and at most ``error`` above it.

    Build it with :meth:`solve`. Called with (B, S) beliefs it gives (B, A) action probabilities, so
    that ``bound(beliefs)`` is the table of a target.

    Args:
        model: the POMDP.
        alpha: (A, S) alpha vectors.
        sweeps: of value iteration that made them.
        error: by how much an entry may be above the solution at most, in units of the discounted
            reward.

    Raises:
        ValueError: alpha vectors of another model.

    >>> deterministic = torch.eye(2, dtype=torch.float64).repeat(2, 1, 1)  # two actions, both stay
    >>> blind = torch.ones(2, 2, 1, dtype=torch.float64)  # one observation: nothing is seen
    >>> reward = torch.tensor([[1.0, 0.0], [0.0, 0.5]], dtype=torch.float64)
    >>> model = FinitePOMDP.of(deterministic, blind, reward)
    >>> bound = FastInformedBound.solve(model, discount=0.5, tolerance=1e-9)
    >>> bound.alpha
    tensor([[2.0000, 0.5000],
            [1.0000, 1.0000]], dtype=torch.float64)
    >>> bound(torch.tensor([[0.5, 0.5], [0.2, 0.8]]))
    tensor([[1., 0.],
            [0., 1.]], dtype=torch.float64)
    """

    alpha: Tensor

    def __init__(self, model: FinitePOMDP, alpha: Tensor, sweeps: int, error: float = math.inf):
        super().__init__()
        checks.floating("alpha", alpha, *model.reward.shape)
        self.model, self.sweeps, self.error = model, sweeps, error
        self.hold(alpha=alpha)

    @classmethod
    def solve(
        cls,
        model: FinitePOMDP,
        discount: float,
        tolerance: float = 1e-3,
        max_sweeps: int | None = None,
    ) -> FastInformedBound:
        """Iterate until no entry can be further than ``tolerance`` from the solution.

        The tolerance is a share of the span of the rewards, the largest less the smallest: neither
        their unit nor a constant added to all of them changes the policy. After a sweep that
        changed the entries by between l and h, the solution is above them by between l γ / (1 - γ)
        and h γ / (1 - γ) (MacQueen's bounds). The upper end is added, so that the result is an
        upper bound; the distance of the two is its ``error``.

        Work per sweep is proportional to the transitions and observations of positive probability,
        times A.

        Args:
            model: the POMDP.
            discount: γ, in [0, 1).
            tolerance: largest error, in spans of the reward; above 0.
            max_sweeps: by default as many as suffice at this discount.

        Raises:
            ValueError: a discount outside [0, 1), a tolerance that is not positive or below what
                float64 resolves, or too few sweeps.
        """
        if not 0 <= checks.number("discount", discount, 0, 1) < 1:
            raise ValueError(f"discount must be in [0, 1), got {discount}")
        tolerance = checks.number("tolerance", tolerance, 0, open_low=True)
        horizon, model = 1 / (1 - discount), FinitePOMDP.of(*model)  # also of _replace
        least, span = model.reward.min(), model.reward.max() - model.reward.min()
        # what float64 cannot tell: every sweep rounds numbers of the size of the horizon
        rounding = 8 * torch.finfo(torch.float64).eps * horizon**2
        if tolerance <= rounding:
            raise ValueError(
                f"tolerance must be above {rounding:.2g} at a discount of {discount}, which "
                f"float64 does not resolve, got {tolerance:g}"
            )
        if max_sweeps is None:
            enough = (
                math.log((tolerance - rounding) / horizon) / math.log(discount) if discount else 0
            )
            max_sweeps = 2 + max(0, math.ceil(enough))
        actions, states, seen = model.observation.shape
        a, s, after = model.transition.nonzero(as_tuple=True)
        joint = model.transition[a, s, after].unsqueeze(1) * model.observation[a, after]
        entry, o = joint.nonzero(as_tuple=True)
        situation, group = torch.unique(((a * states + s)[entry]) * seen + o, return_inverse=True)
        owner, weight, after = situation // seen, joint[entry, o].unsqueeze(1), after[entry]
        # rewards from 0 to 1: what belongs to their unit comes back at the end
        reward = (model.reward - least) / span.masked_fill(span == 0, 1.0)
        alpha, error = torch.zeros_like(reward), math.inf
        for sweep in range(1, checks.count("max_sweeps", max_sweeps) + 1):
            reached = alpha.new_zeros(len(situation), actions).index_add_(
                0, group, weight * alpha.T[after]
            )
            future = (
                alpha.new_zeros(actions * states)
                .index_add_(0, owner, reached.amax(1))
                .view(actions, states)
            )
            alpha, before = reward + discount * future, alpha
            low, high = torch.aminmax(alpha - before)
            error = ((high - low) * discount * horizon).item() + rounding
            if error <= tolerance:
                above = alpha + high * discount * horizon + rounding
                unit = span.item()
                slack = rounding * abs(least.item()) / horizon
                found = above * span + least * horizon + slack
                return cls(model, found, sweep, error * unit + slack)
        raise ValueError(
            f"max_sweeps must be enough for a tolerance of {tolerance:g} spans of the reward, got "
            f"{max_sweeps}, after which an entry may be off by {error:.3g}"
        )

    def utilities(self, belief: Tensor) -> Tensor:
        """(B, S) beliefs -> (B, A) Σ_s b(s) α_a(s), in units of the discounted reward.

        Raises:
            TypeError, ValueError: beliefs that do not fit the model or are no distributions.
        """
        return self.model._belief(belief) @ self.alpha.T

    def _best(self, belief: Tensor) -> Tensor:
        """(B, A) which actions have the largest utility; a tie that rounding has broken counts as
        one.
        """
        utilities = self.utilities(belief)
        # of the differences, which a constant added to all rewards does not change
        span = self.alpha.max() - self.alpha.min()
        slack = 1e-9 * span + 4 * torch.finfo(self.alpha.dtype).eps * self.alpha.abs().max()
        return utilities >= utilities.amax(-1, keepdim=True) - slack

    def forward(self, belief: Tensor) -> Tensor:
        """(B, S) beliefs -> (B, A): all of it on the best action, the first of equals; raises as
        ``utilities``.
        """
        best = self._best(belief)
        return (best & (best.cumsum(-1) == 1)).to(self.alpha.dtype)

    def split(self, belief: Tensor) -> Tensor:
        """(B, S) beliefs -> (B, A): the best actions share it evenly; raises as ``utilities``."""
        best = self._best(belief).to(self.alpha.dtype)
        return best / best.sum(-1, keepdim=True)

    def softmax(self, belief: Tensor, temperature: float) -> Tensor:
        """(B, S) beliefs -> (B, A): softmax of the utilities over a temperature above 0."""
        temperature = checks.number("temperature", temperature, 0, open_low=True)
        utilities = self.utilities(belief)
        return torch.softmax((utilities - utilities.amax(-1, keepdim=True)) / temperature, -1)

    def policy(self, states: Sequence, actions: Sequence) -> pomdp_py.AlphaVectorPolicy:
        """The alpha vectors as a ``pomdp_py`` planner, for agents whose states and actions are
        listed in this order.
        """
        from pomdp_py import AlphaVectorPolicy

        if (len(actions), len(states)) != tuple(self.alpha.shape):
            shape = tuple(self.alpha.shape)
            raise ValueError(
                f"actions and states must be {shape} long, got {(len(actions), len(states))}"
            )
        return AlphaVectorPolicy(list(zip(self.alpha.tolist(), actions, strict=True)), list(states))
