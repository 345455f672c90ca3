"""REINFORCE, alone and with IMM, for many independent runs as one batched program.

The policy network is the paper's: a one-hot state, 32 hidden units with tanh, four actions. Every
tensor has the run as its first dimension; a sum of losses over runs differentiates each of them by
itself.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from imm_lib import checks, distributions
from imm_lib.divergences import Divergence
from imm_lib.experiments.grid.torus import Torus
from imm_lib.induced import cross_entropy, induce

DISCOUNT = 0.9
LENGTH = 50
"""Steps of the one trajectory of an epoch."""

HIDDEN = 32


class Trajectory(NamedTuple):
    """T moves in each of R runs."""

    state: Tensor  # (R, T) where the move began
    action: Tensor  # (R, T)
    reward: Tensor  # (R, T)
    last: Tensor  # (R,) the state reached at the end


def network(states: int, actions: int, runs: int, generator: torch.Generator) -> list[Tensor]:
    """R freshly drawn networks, as PyTorch initialises linear layers: (R, S, H), (R, 1, H), (R, H,
    A), (R, 1, A).
    """

    def uniform(*shape: int, fan_in: int) -> Tensor:
        draw = torch.rand(runs, *shape, generator=generator)
        return ((2 * draw - 1) / fan_in**0.5).requires_grad_()

    first = [uniform(states, HIDDEN, fan_in=states), uniform(1, HIDDEN, fan_in=states)]
    return [*first, uniform(HIDDEN, actions, fan_in=HIDDEN), uniform(1, actions, fan_in=HIDDEN)]


def log_policy(weights: list[Tensor]) -> Tensor:
    """(R, S, A) log π(a|s) of the networks in every state."""
    first, first_bias, second, second_bias = weights
    return (torch.tanh(first + first_bias) @ second + second_bias).log_softmax(-1)


def play(torus: Torus, policy: Tensor, length: int, generator: torch.Generator) -> Trajectory:
    """One trajectory from a uniform state in each of R runs, under (R, S, A) action probabilities.

    The draws are those of a generator of the CPU, wherever the policy is.
    """
    runs, states, actions = policy.shape
    after, rewards = torus.after.T.to(policy.device), torus.reward.to(policy)
    cumulative = policy.detach().cumsum(-1).view(-1, actions)
    cumulative[:, -1] = torch.inf  # rounding may leave the last sum below a draw
    base = torch.arange(runs, device=policy.device) * states
    state = torch.randint(states, (runs,), generator=generator).to(policy.device)
    draws = torch.rand(length, runs, 1, generator=generator).to(policy.device)
    path = []
    for u in draws:
        action = (u > cumulative[base + state]).sum(-1)
        path.append((state, action))
        state = after[state, action]
    visited, chosen = (torch.stack(part, 1) for part in zip(*path, strict=True))
    return Trajectory(visited, chosen, rewards[after[visited, chosen]], state)


def rewards_to_go(reward: Tensor, discount: float = DISCOUNT) -> Tensor:
    """(R, T) rewards -> (R, T) discounted sums of what follows, the move's own reward included."""
    time = torch.arange(reward.shape[1], device=reward.device)
    ahead = time.unsqueeze(1) - time
    return reward @ torch.where(ahead >= 0, discount ** ahead.clamp(min=0), 0.0).to(reward)


def reinforce(log_pi: Tensor, path: Trajectory, weight: Tensor) -> Tensor:
    """(R,) the loss -mean_t weight_t log π(a_t|s_t)."""
    runs = torch.arange(len(log_pi), device=log_pi.device).unsqueeze(1)
    return -(weight * log_pi[runs, path.state, path.action]).mean(1)


def induced_matching(
    torus: Torus,
    log_pi: Tensor,
    path: Trajectory,
    target: Tensor,
    divergence: Divergence = cross_entropy,
) -> Tensor:
    """(R,) the IMM risk mean_t H(P̂(·|x_t), Q̂(·|x_t)); the induced policy averages over all y,
    exactly (eq. 9).
    """
    size = torus.size
    induced = induce(log_pi.unflatten(1, (size, size)))
    visits = torch.zeros_like(induced[..., 0]).scatter_add_(
        1, path.state // size, torch.ones_like(path.reward)
    )
    return (visits * divergence(target.to(induced), induced)).sum(1) / path.state.shape[1]


def policy_matching(
    torus: Torus,
    log_pi: Tensor,
    path: Trajectory,
    target: Tensor,
    divergence: Divergence = cross_entropy,
) -> Tensor:
    """(R,) reverse distillation mean_t H(P̂(·|x_t), π(·|s_t)): the target against the policy itself
    (eq. 1).
    """
    runs = torch.arange(len(log_pi), device=log_pi.device).unsqueeze(1)
    rows = target.to(log_pi)[path.state // torus.size]
    return divergence(rows, log_pi[runs, path.state]).mean(1)


class Critic:
    """A table of state values, moved towards the λ-returns, and generalised advantages (Schulman et
    al., 2016).
    """

    def __init__(self, torus: Torus, runs: int, trace: float = 0.95, rate: float = 0.3):
        self.value = torch.zeros(runs, torus.size**2, device=torus.device)
        self.trace = checks.number("trace", trace, 0, 1)
        self.rate = checks.number("rate", rate, 0, 1, open_low=True)

    def __call__(self, path: Trajectory) -> Tensor:
        """(R, T) advantages of the moves; the table learns from them."""
        reached = torch.cat([path.state[:, 1:], path.last.unsqueeze(1)], 1)
        ahead = DISCOUNT * self.value.gather(1, reached)
        error = path.reward + ahead - self.value.gather(1, path.state)
        advantage = rewards_to_go(error, DISCOUNT * self.trace)
        visits = torch.zeros_like(self.value).scatter_add_(
            1, path.state, torch.ones_like(advantage)
        )
        total = torch.zeros_like(self.value).scatter_add_(1, path.state, advantage)
        self.value += self.rate * total / visits.clamp(min=1)
        return advantage


Matching = Callable[[Torus, Tensor, Trajectory, Tensor], Tensor]


def learn(
    torus: Torus,
    runs: int,
    generator: torch.Generator,
    target: Tensor | None = None,
    lam: float = 0.0,
    matching: Matching = induced_matching,
    lr: float = 1e-2,
    critic: bool = False,
) -> Iterator[Tensor]:
    """Train R networks, without end; after each epoch, one trajectory and one Adam step, yields log
    π, (R, S, A).

    Args:
        torus: the world; where it is, everything is computed.
        runs: number R of independent runs.
        generator: of the networks and the trajectories, on the CPU.
        target: (N, A) action probabilities of the policy that knows x.
        lam: λ, the weight of the matching term; the loss is REINFORCE + λ · matching.
        matching: ``induced_matching`` or ``policy_matching``.
        lr: Adam's learning rate.
        critic: weigh moves by generalised advantages instead of the rewards to go.

    Raises:
        TypeError, ValueError: bad numbers, or a target that does not fit the torus or is no
            distribution.
    """
    checks.count("runs", runs)
    actions, states = torus.after.shape
    checks.number("lam", lam, 0)
    if target is not None:
        wanted = (torus.size, actions)
        if distributions.probabilities("target", target).shape != wanted:
            raise ValueError(f"target must be {wanted}, got {checks.describe(target)}")
        target = target.to(torus.device)
    elif lam:
        raise ValueError("target must be given when lam is above 0, got None")
    drawn = network(states, actions, runs, generator)
    weights = [part.detach().to(torus.device).requires_grad_() for part in drawn]
    optimiser = torch.optim.Adam(weights, checks.number("lr", lr, 0, open_low=True))
    judge = Critic(torus, runs) if critic else lambda path: rewards_to_go(path.reward)
    log_pi = log_policy(weights)
    while True:
        path = play(torus, log_pi.detach().exp(), LENGTH, generator)
        loss = reinforce(log_pi, path, judge(path))
        if target is not None:
            loss = loss + lam * matching(torus, log_pi, path, target)
        optimiser.zero_grad()
        loss.sum().backward()
        optimiser.step()
        log_pi = log_policy(weights)
        yield log_pi.detach()
