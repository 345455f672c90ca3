"""The benchmark's grid: REINFORCE with a policy that knows one coordinate, by every method.

A budget is a number of trajectories. There is no held-out text or table here: every setting is
judged by its exact mean return over runs that only choose, and the chosen one reported over others.
"""

import torch
from torch import Tensor

from imm_lib.experiments.clinic.protocol import DECAYS, OFFSETS, SHARES, WEIGHTS
from imm_lib.experiments.grid import learning
from imm_lib.experiments.grid.runs import target
from imm_lib.experiments.grid.torus import HORIZON, Torus

RATE = 1e-2
"""Of Adam, as in the paper's program."""

DECAY_UNIT = 1e-3
"""A decay of 1 is a penalty of half of this times the squared weights."""

TARGETS = {"soft": "softmax 0.5", "split": "split"}
"""Restricted policies by the task's name."""

FLOOR = 0.04
"""Share of the uniform policy in every target, so that an offset's logarithms are finite."""


def restricted(torus: Torus, name: str) -> Tensor:
    """(N, A) the target of a task; raises ValueError for an unknown name."""
    if name not in TARGETS:
        raise ValueError(f"task must name a target, one of {', '.join(TARGETS)}, got {name!r}")
    rows = target(torus, TARGETS[name])
    assert rows is not None
    return (1 - FLOOR) * rows + FLOOR / rows.shape[1]


def learn(
    torus: Torus,
    rows: Tensor,
    term: str,
    settings: dict[str, Tensor],
    budgets: list[int],
    seed: int,
) -> list[Tensor]:
    """Train one network for each entry of the settings.

    Args:
        torus: the world.
        rows: (N, A) the target.
        term: "none", "match" or "IMM".
        settings: "decay", "lam" and "share" (of the offset), (R,) each.
        budgets: numbers of trajectories, increasing.
        seed: of networks and trajectories.

    Returns:
        at each budget (R, S, A) policies.
    """
    runs, generator = len(settings["lam"]), torch.Generator().manual_seed(seed)
    actions, states = torus.after.shape
    drawn = learning.network(states, actions, runs, generator)
    weights = [part.detach().to(torus.device).requires_grad_() for part in drawn]
    settings = {key: value.to(torus.device) for key, value in settings.items()}
    optimiser = torch.optim.Adam(weights, RATE)
    by_state = rows.repeat_interleave(torus.size, 0).float().log()
    offset = settings["share"].view(-1, 1, 1) * by_state
    matching = {"match": learning.policy_matching, "IMM": learning.induced_matching}.get(term)
    lam, decay = settings["lam"], DECAY_UNIT / 2 * settings["decay"]
    found = []
    for trajectory in range(1, budgets[-1] + 1):
        log_pi = (learning.log_policy(weights) + offset).log_softmax(-1)
        path = learning.play(torus, log_pi.detach().exp(), learning.LENGTH, generator)
        weight = learning.rewards_to_go(path.reward)
        loss = learning.reinforce(log_pi, path, weight)
        loss = loss + decay * sum(w.square().sum((1, 2)) for w in weights[::2])
        if matching is not None:
            loss = loss + lam * matching(torus, log_pi, path, rows.float())
        optimiser.zero_grad()
        loss.sum().backward()
        optimiser.step()
        if trajectory in budgets:
            with torch.no_grad():
                last = learning.log_policy(weights) + offset
            found.append(last.softmax(-1))
    return found


class Judge:
    """Settings of one method at one budget: the runs that choose come first, then those that
    report.
    """

    def __init__(self, choosing: int):
        self.choosing = choosing

    def best(self, returns: Tensor) -> int:
        """(S, R) returns -> the setting that is best over the runs that choose."""
        return int(returns[:, : self.choosing].mean(1).argmax())

    def reported(self, returns: Tensor) -> list[float]:
        """(R,) returns -> minus those of the runs that report: a loss."""
        return [round(-x, 4) for x in returns[self.choosing :].tolist()]


def compare(
    name: str,
    budgets: list[int],
    choosing: int,
    reporting: int,
    seed: int,
    device: torch.device | str = "cpu",
) -> dict[int, dict]:
    """Every method's losses, minus exact returns, at each budget.

    Args:
        name: of the target, one of TARGETS.
        budgets: numbers of trajectories, increasing.
        choosing: runs on which settings are chosen.
        reporting: runs that are reported.
        seed: of all runs; those of one number start alike in every method.
        device: where everything is computed; draws are the CPU's.

    Returns:
        by budget and method: "loss", "lam", "share" and "decay", lists over the reported runs.
    """
    torus = Torus().to(device)
    rows, runs, judge = restricted(torus, name), choosing + reporting, Judge(choosing)
    found: dict[int, dict] = {budget: {} for budget in budgets}
    zero = {"decay": 0.0, "lam": 0.0, "share": 0.0}

    def trained(term: str, settings: list[dict], until: list[int]) -> list[Tensor]:
        """At each budget (S, R, states, A) policies; the runs of every setting share their seed."""
        parts = []
        for setting in settings:
            wide = {key: torch.full((runs,), value) for key, value in setting.items()}
            parts.append(learn(torus, rows, term, wide, until, seed))
        return [torch.stack(policies) for policies in zip(*parts, strict=True)]

    def record(budget: int, method: str, returns: Tensor, setting: dict) -> None:
        losses = judge.reported(returns)
        constant = {key: [value] * len(losses) for key, value in setting.items()}
        found[budget][method] = {"loss": losses, **constant}

    def returns_of(policies: Tensor) -> Tensor:
        return torus.returns(policies, HORIZON)

    def tune(term: str, begin: dict[int, dict], knob: str, values: tuple) -> dict[int, tuple]:
        """By budget: the policies and the setting with the best value of one knob.

        Budgets that begin alike are trained together.
        """
        chosen = {}
        for start in {str(setting): setting for setting in begin.values()}.values():
            settings = [{**start, knob: value} for value in values]
            own = [budget for budget in budgets if begin[budget] == start]
            for budget, policies in zip(own, trained(term, settings, own), strict=True):
                index = judge.best(returns_of(policies))
                chosen[budget] = (policies[index], settings[index])
        return chosen

    def both(name: str, term: str, begin: dict[int, dict], knob: str, values: tuple) -> dict:
        """The best of a knob, then of the decay beside it; recorded."""
        first = {b: setting for b, (_, setting) in tune(term, begin, knob, values).items()}
        chosen = tune(term, first, "decay", DECAYS)
        for budget, (policies, setting) in chosen.items():
            record(budget, name, returns_of(policies), setting)
        return chosen

    def mix(name: str, chosen: dict) -> None:
        by_state = rows.repeat_interleave(torus.size, 0).float()
        for budget, (policies, setting) in chosen.items():
            mixed = torch.stack([(1 - s) * policies + s * by_state for s in SHARES])
            returns = returns_of(mixed)
            index = judge.best(returns)
            record(budget, name, returns[index], {**setting, "share": SHARES[index]})

    def only(chosen: dict) -> dict[int, dict]:
        return {budget: setting for budget, (_, setting) in chosen.items()}

    plain = tune("none", dict.fromkeys(budgets, zero), "decay", DECAYS)
    for budget, (policies, setting) in plain.items():
        record(budget, "plain", returns_of(policies), setting)
    mix("interpolation", plain)
    offset = both("offset", "none", only(plain), "share", OFFSETS)
    both("reverse distillation", "match", only(plain), "lam", WEIGHTS)
    imm = both("IMM", "IMM", only(plain), "lam", WEIGHTS)
    both("IMM + offset", "IMM", only(offset), "lam", WEIGHTS)
    mix("IMM + interpolation", imm)
    for budget, (policies, setting) in tune("IMM", only(plain), "lam", (1.0,)).items():
        record(budget, "IMM, λ = 1", returns_of(policies), setting)
    alone = returns_of(rows.repeat_interleave(torus.size, 0)).expand(runs)
    for budget in budgets:
        record(budget, "target", alone, {**zero, "share": 1.0})
    return found
