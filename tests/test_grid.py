"""The torus against real ``pomdp_py`` models, the fast informed bound against slow twins and known
values.
"""

import itertools
import random
import types
from dataclasses import replace

import pytest
import torch
from worlds import generator, random_probabilities

import imm_lib as imm
from imm_lib import experiments
from imm_lib.experiments import grid
from imm_lib.experiments.grid import MOVES, Torus, learning, models

DISCOUNT = 0.9


def random_pomdp(
    actions: int = 3, states: int = 4, seen: int = 2, seed: int = 0
) -> imm.FinitePOMDP:
    reward = torch.randn(actions, states, generator=generator(seed), dtype=torch.float64)
    transition = random_probabilities(actions, states, states, seed=seed + 1)
    return imm.FinitePOMDP.of(
        transition, random_probabilities(actions, states, seen, seed=seed + 2), reward
    )


def slow_bound(model: imm.FinitePOMDP, discount: float, sweeps: int) -> torch.Tensor:
    """The bound's recursion written out, entry by entry."""
    actions, states, seen = model.observation.shape
    alpha = torch.zeros(actions, states, dtype=torch.float64)
    for _ in range(sweeps):
        new = model.reward.clone()
        for a, s, o in itertools.product(range(actions), range(states), range(seen)):
            joint = model.transition[a, s] * model.observation[a, :, o]
            new[a, s] += discount * max((joint @ alpha[after]).item() for after in range(actions))
        alpha = new
    return alpha


def qmdp(model: imm.FinitePOMDP, discount: float, sweeps: int = 2000) -> torch.Tensor:
    q = torch.zeros_like(model.reward)
    for _ in range(sweeps):
        q = model.reward + discount * model.transition @ q.amax(0)
    return q


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 1), (3, 4, 2), (2, 5, 4)])
def test_the_bound_is_its_recursion(shape):
    model = random_pomdp(*shape)
    bound = imm.FastInformedBound.solve(model, 0.8, 1e-6)
    assert_just_above(bound, slow_bound(model, 0.8, 180))


def assert_just_above(bound: imm.FastInformedBound, solution: torch.Tensor) -> None:
    """An upper bound, as near as it says and as it was asked to be."""
    excess = bound.alpha - solution
    assert excess.min() >= 0
    assert excess.max() <= bound.error + 1e-12
    reward = bound.model.reward
    assert bound.error <= 1e-6 * (reward.max() - reward.min()) + 1e-12


def test_zeros_in_the_model_are_left_out_rightly():
    model = random_pomdp()
    transition, observation = model.transition.clone(), model.observation.clone()
    transition[:, :, 0], observation[:, 1, 0] = 0, 0
    parts = [part / part.sum(-1, keepdim=True) for part in (transition, observation)]
    model = imm.FinitePOMDP.of(*parts, model.reward)
    bound = imm.FastInformedBound.solve(model, 0.8, 1e-6)
    assert_just_above(bound, slow_bound(model, 0.8, 180))


def exact_value(
    model: imm.FinitePOMDP, belief: torch.Tensor, discount: float, horizon: int
) -> float:
    """The POMDP's value over ``horizon`` steps by recursion over all histories: exact, and slow."""
    if horizon == 0:
        return 0.0
    actions, _, seen = model.observation.shape
    values = []
    for a in range(actions):
        joints = [(belief @ model.transition[a]) * model.observation[a, :, o] for o in range(seen)]
        future = sum(
            j.sum().item() * exact_value(model, j / j.sum(), discount, horizon - 1) for j in joints
        )
        values.append((belief @ model.reward[a]).item() + discount * future)
    return max(values)


@pytest.mark.parametrize("seed", range(4))
def test_value_bound_qmdp_are_in_order(seed):
    model, discount, horizon = random_pomdp(2, 3, 2, seed), 0.6, 6
    bound, q = imm.FastInformedBound.solve(model, discount, 1e-10), qmdp(model, discount)
    assert (bound.alpha <= q + 1e-8).all()
    rest = discount**horizon / (1 - discount) * model.reward.abs().max().item()
    for belief in random_probabilities(3, 3, seed=seed):
        value = exact_value(model, belief, discount, horizon)
        assert (
            value - rest
            <= bound.utilities(belief[None]).max().item()
            <= (q @ belief).max().item() + 1e-8
        )


def test_a_reward_that_is_drawn_is_refused():
    from pomdp_py.problems.tiger import tiger_problem as tiger

    problem, draw = tiger.TigerProblem.create("tiger-left", 0.5, 0.15), random.Random(0)
    states = [tiger.TigerState(f"tiger-{side}") for side in ("left", "right")]
    seen = [tiger.TigerObservation(f"tiger-{side}") for side in ("left", "right")]
    agent = types.SimpleNamespace(
        transition_model=problem.agent.transition_model,
        observation_model=problem.agent.observation_model,
        reward_model=types.SimpleNamespace(sample=lambda *_: draw.random()),
    )
    with pytest.raises(ValueError, match="deterministic reward model"):
        imm.FinitePOMDP.read(agent, states, [tiger.TigerAction("listen")], seen)


def test_tiger():
    """A stochastic problem from the literature: the optimal value at the uniform belief is 19.37
    for discount 0.95.
    """
    from pomdp_py.problems.tiger import tiger_problem as tiger

    problem = tiger.TigerProblem.create("tiger-left", 0.5, 0.15)
    states = [tiger.TigerState(f"tiger-{side}") for side in ("left", "right")]
    actions = [tiger.TigerAction(name) for name in ("open-left", "open-right", "listen")]
    seen = [tiger.TigerObservation(f"tiger-{side}") for side in ("left", "right")]
    model = imm.FinitePOMDP.read(problem.agent, states, actions, seen)
    assert model.reward.tolist() == [[-100, 10], [10, -100], [-1, -1]]
    assert model.observation[2].tolist() == [
        [0.85, pytest.approx(0.15)],
        [pytest.approx(0.15), 0.85],
    ]
    assert model.update(torch.tensor([0.5, 0.5]).double(), 2, 0).tolist() == [
        0.85,
        pytest.approx(0.15),
    ]
    bound = imm.FastInformedBound.solve(model, 0.95, 1e-9)
    uniform = torch.tensor([[0.5, 0.5]], dtype=torch.float64)
    optimum = 19.3713683559
    upper, qmdp_bound = (
        bound.utilities(uniform).max().item(),
        (qmdp(model, 0.95) @ uniform[0]).max().item(),
    )
    assert optimum < upper < qmdp_bound == pytest.approx(189.0, abs=1e-6)
    assert bound(uniform).tolist() == [[0, 0, 1]]
    sure = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    assert bound(sure).tolist() == [[0, 1, 0]]
    planner = bound.policy(states, actions)
    belief = dict(zip(states, [0.5, 0.5], strict=True))
    assert planner.value(belief) == pytest.approx(upper)


@pytest.mark.parametrize("size", [3, 4, 5])
def test_the_tensors_are_those_of_the_pomdp_py_models(size):
    torus = Torus(size)
    lists = models.states(torus), models.actions(), models.observations(torus)
    for read, made in zip(
        imm.FinitePOMDP.read(models.agent(torus), *lists), torus.pomdp(), strict=True
    ):
        torch.testing.assert_close(read, made, rtol=1e-12, atol=1e-12)


def test_the_environments_step_side_by_side():
    torus = Torus(5)
    world, state, moves = models.environment(torus, 1, 4), 1 * 5 + 4, models.actions()
    for a in torch.randint(4, (200,), generator=generator(3)).tolist():
        reward = world.state_transition(moves[a], execute=True)
        state = torus.after[a, state].item()
        assert world.state.data == divmod(state, 5) and reward == pytest.approx(
            torus.reward[state].item()
        )


@pytest.mark.parametrize("width", [0.1, 0.3])
def test_deterministic_moves_make_the_bound_the_mdp(width):
    model = Torus(7, width).pomdp()
    bound = imm.FastInformedBound.solve(model, DISCOUNT, 1e-10)
    torch.testing.assert_close(bound.alpha, qmdp(model, DISCOUNT), rtol=1e-8, atol=1e-8)


def test_the_bound_is_above_the_value_of_knowing_x():
    """The belief stays uniform over y, so the POMDP is a 1-D problem whose value is found by
    dynamic programming.
    """
    torus = Torus(7)
    bound = imm.FastInformedBound.solve(torus.pomdp(), DISCOUNT, 1e-10)
    per_x, value = torus.reward.view(7, 7).mean(1), torch.zeros(7, dtype=torch.float64)
    for _ in range(1000):
        value = torch.stack(
            [(per_x + DISCOUNT * value).roll(-dx) for dx, _ in MOVES.values()]
        ).amax(0)
    assert (bound.utilities(torus.belief).amax(1) >= value).all()


@pytest.mark.parametrize(("size", "horizon"), [(3, 3), (5, 2)])
def test_pomdp_pys_own_recursion_is_below_the_bound(size, horizon):
    import pomdp_py

    torus = Torus(size)
    bound = imm.FastInformedBound.solve(torus.pomdp(), DISCOUNT, 1e-10)
    agent = models.agent(torus, torus.belief[0])
    args = models.states(torus), models.actions(), models.observations(torus)
    rules = agent.transition_model, agent.observation_model, agent.reward_model
    value = pomdp_py.value(agent.belief, *args, *rules, DISCOUNT, horizon=horizon)
    per_x, exact = torus.reward.view(size, size).mean(1), torch.zeros(size, dtype=torch.float64)
    for _ in range(horizon):
        exact = torch.stack(
            [(per_x + DISCOUNT * exact).roll(-dx) for dx, _ in MOVES.values()]
        ).amax(0)
    assert value == pytest.approx(exact[0].item(), rel=1e-5)
    assert value <= bound.utilities(torus.belief[:1]).max().item()


def test_the_papers_grid():
    """A tie at the centre column, and the yardsticks: best, random, and the POMDP's
    policy alone.
    """
    torus = Torus()
    bound = imm.FastInformedBound.solve(
        Torus(width=0.3).pomdp(), DISCOUNT
    )  # as the authors' program does
    split = bound.split(torus.belief)
    assert split[5].tolist() == [0.5, 0.5, 0, 0] and bound(torus.belief)[5].tolist() == [1, 0, 0, 0]
    assert split[:5, 3].tolist() == [1] * 5 and split[6:, 2].tolist() == [1] * 5
    assert torus.optimum() == pytest.approx(21.41, abs=0.01)
    assert torus.returns(torch.full((121, 4), 0.25)).item() == pytest.approx(1.14, abs=0.01)
    assert torus.returns(bound(torus.belief).repeat_interleave(11, 0)).item() == pytest.approx(
        5.89, abs=0.01
    )
    softmax = bound.softmax(torus.belief, 0.5)
    assert (softmax.argmax(1) == bound(torus.belief).argmax(1))[:5].all() and softmax.max() < 1


def test_returns_are_those_of_rollouts():
    torus = Torus(4)
    policy = random_probabilities(16, 4)
    state, total = torch.arange(16).repeat(2000), torch.zeros(32_000, dtype=torch.float64)
    for _ in range(6):
        action = torch.multinomial(policy[state], 1, generator=generator(len(total)))[:, 0]
        state = torus.after[action, state]
        total += torus.reward[state]
    error = total.std().item() / len(total) ** 0.5
    assert torus.returns(policy, 6).item() == pytest.approx(total.mean().item(), abs=5 * error)
    assert torus.returns(policy.expand(3, 16, 4), 6).shape == (3,)
    assert torus.returns(policy, 6).item() < torus.optimum(6)


def test_the_policy_is_a_target():
    torus = Torus()
    target = imm.FastInformedBound.solve(torus.pomdp(), DISCOUNT).split(torus.belief)
    log_q = torch.randn(121, 4, generator=generator(1), dtype=torch.float64).log_softmax(1)
    risk = imm.ExactIMM(target, imm.BeliefContexts(torus.belief))(
        lambda x, state: log_q[state], torch.arange(11)
    )
    induced = torch.stack([log_q.view(11, 11, 4)[x].exp().mean(0) for x in range(11)]).log()
    assert risk.item() == pytest.approx(-(target * induced).sum(1).mean().item())


SMALL, of = random_pomdp(), imm.FinitePOMDP.of
BOUND = imm.FastInformedBound.solve(SMALL, 0.5)
HALF = torch.full((1, 4), 0.25)
CASES = {
    "transition": (
        lambda: of(2 * SMALL.transition, *SMALL[1:]),
        ValueError,
        "transition must sum to 1",
    ),
    "transition's shape": (
        lambda: of(SMALL.transition[:, :2], *SMALL[1:]),
        ValueError,
        r"\(A, S, S\)",
    ),
    "observation": (
        lambda: of(SMALL[0], 2 * SMALL[1], SMALL[2]),
        ValueError,
        "observation must sum to 1",
    ),
    "observation's shape": (
        lambda: of(SMALL[0], SMALL[1][:2], SMALL[2]),
        ValueError,
        "observation must be",
    ),
    "reward's shape": (
        lambda: of(*SMALL[:2], SMALL[2][:2]),
        ValueError,
        r"reward must be .*\(3, 4\)",
    ),
    "reward nan": (
        lambda: of(*SMALL[:2], SMALL[2] * torch.nan),
        ValueError,
        "reward must be finite",
    ),
    "discount 1": (
        lambda: imm.FastInformedBound.solve(SMALL, 1.0),
        ValueError,
        r"discount must be in \[0, 1\), got 1",
    ),
    "discount < 0": (
        lambda: imm.FastInformedBound.solve(SMALL, -0.1),
        ValueError,
        "discount must be .*-0.1",
    ),
    "sweeps": (
        lambda: imm.FastInformedBound.solve(SMALL, 0.99, 1e-9, 3),
        ValueError,
        "max_sweeps must be enough.*3",
    ),
    "belief": (lambda: BOUND(2 * HALF), ValueError, "belief must sum to 1"),
    "belief's shape": (
        lambda: BOUND(HALF[:, :2]),
        ValueError,
        r"belief must be \(B, 4\)",
    ),
    "alpha": (
        lambda: imm.FastInformedBound(SMALL, torch.zeros(2, 4), 1),
        ValueError,
        r"alpha must be .*\(3, 4\)",
    ),
    "temperature": (lambda: BOUND.softmax(HALF, 0), ValueError, "temperature must be"),
    "policy": (lambda: BOUND.policy([1], [2]), ValueError, r"must be \(3, 4\) long, got \(1, 1\)"),
    "impossible observation": (
        lambda: Torus(3).pomdp().update(Torus(3).belief[0], 0, 2),
        ValueError,
        "observation 2 has probability 0 under the belief",
    ),
    "size 2": (lambda: Torus(2), ValueError, "size must be at least 3, got 2"),
    "width 0": (lambda: Torus(3, 0.0), ValueError, "width must be"),
    "returns' shape": (
        lambda: Torus(3).returns(HALF),
        ValueError,
        r"policy must end in \(S, A\) = \(9, 4\)",
    ),
    "returns' policy": (
        lambda: Torus(3).returns(torch.ones(9, 4)),
        ValueError,
        "policy must sum to 1",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input(name):
    call, error, pattern = CASES[name]
    with pytest.raises(error, match=pattern):
        call()


class Network(torch.nn.Module):
    """The policy network of one run, in PyTorch's own layers."""

    def __init__(self, weights: list[torch.Tensor], run: int):
        super().__init__()
        first, first_bias, second, second_bias = (w.detach()[run] for w in weights)
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(*first.shape),
            torch.nn.Tanh(),
            torch.nn.Linear(*second.shape),
            torch.nn.LogSoftmax(-1),
        )
        state = {
            "0.weight": first.T,
            "0.bias": first_bias[0],
            "2.weight": second.T,
            "2.bias": second_bias[0],
        }
        self.layers.load_state_dict(state)
        self.eye = torch.eye(len(first))

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        return self.layers(self.eye[state])


@pytest.mark.parametrize("lam", [0.0, 0.25, 2.0])
@pytest.mark.parametrize("matching", ["induced", "policy"])
def test_learning_is_the_loop_over_runs(matching, lam):
    """The batched program against one network, one estimator of the library and one optimiser per
    run.
    """
    torus, runs = Torus(5), 3
    target = random_probabilities(5, 4).float()
    source = generator(11)
    networks = [
        Network(weights, run)
        for weights in [learning.network(25, 4, runs, source)]
        for run in range(runs)
    ]
    optimisers = [torch.optim.Adam(net.parameters(), 0.01) for net in networks]
    slow = []
    for _ in range(3):
        with torch.no_grad():
            policy = torch.stack([net(torch.arange(25)) for net in networks]).exp()
        path = learning.play(torus, policy, learning.LENGTH, source)
        for run, (net, optimiser) in enumerate(zip(networks, optimisers, strict=True)):
            state, action, reward = path.state[run], path.action[run], path.reward[run].tolist()
            to_go = [sum(0.9**k * r for k, r in enumerate(reward[t:])) for t in range(len(reward))]
            log_q = net(state)
            loss = -(torch.tensor(to_go) * log_q[torch.arange(len(state)), action]).mean()
            if matching == "induced":
                contexts = imm.BeliefContexts(torus.belief.float())
                risk = imm.ExactIMM(target, contexts)(lambda x, e, net=net: net(e), state // 5)
            else:
                risk = imm.ReverseKD(target)(log_q, state // 5)
            optimiser.zero_grad()
            (loss + lam * risk).backward()
            optimiser.step()
        with torch.no_grad():
            slow.append(torch.stack([net(torch.arange(25)) for net in networks]))
    match = {"induced": learning.induced_matching, "policy": learning.policy_matching}[matching]
    fast = learning.learn(torus, runs, generator(11), target, lam, match)
    for step, log_pi in zip(slow, fast, strict=False):
        torch.testing.assert_close(log_pi, step, rtol=2e-4, atol=2e-4)


def test_trajectories_follow_policy_and_torus():
    torus = Torus(3)
    policy = random_probabilities(2, 9, 4).float()
    path = learning.play(torus, policy, 4000, generator(2))
    for run in range(2):
        state, action = path.state[run], path.action[run]
        reached = torch.cat([state[1:], path.last[run : run + 1]])
        assert torch.equal(torus.after[action, state], reached)
        torch.testing.assert_close(
            path.reward[run].double(), torus.reward[reached], rtol=1e-6, atol=1e-6
        )
        counts = torch.zeros(9, 4).index_put_((state, action), torch.ones(4000), accumulate=True)
        share = counts / counts.sum(1, keepdim=True)
        assert ((share - policy[run]).abs() < 5 * (0.25 / counts.sum(1, keepdim=True)).sqrt()).all()
    sure = torch.zeros(2, 9, 4)
    sure[..., 3] = 1
    assert (learning.play(torus, sure, 50, generator(2)).action == 3).all()


def test_the_critic_of_the_truth_has_no_advantage_on_average():
    """With a critic trained to the end, the advantages of a fixed policy's moves average to
    zero.
    """
    torus = Torus(3)
    critic, policy = (
        learning.Critic(torus, 2, rate=0.1),
        torch.full((2, 9, 4), 0.25),
    )
    source = generator(4)
    for _ in range(400):
        critic(learning.play(torus, policy, 50, source))
    truth = torch.zeros(9, dtype=torch.float64)
    for _ in range(500):
        truth = ((torus.reward + 0.9 * truth)[torus.after]).mean(0)
    assert (critic.value.mean(0) - truth).abs().max() < 0.2 * truth.max()
    assert critic(learning.play(torus, policy, 4000, source)).mean().abs() < 0.1


def test_a_critic_without_trace_sees_one_step():
    torus = Torus(3)
    critic = learning.Critic(torus, 1, trace=0.0, rate=1.0)
    critic.value = torch.arange(9.0)[None]
    path = learning.Trajectory(
        *(torch.tensor([x]) for x in ([0, 3], [1, 1])),
        torch.tensor([[1.0, 2.0]]),
        torch.tensor([6]),
    )
    torch.testing.assert_close(critic(path), torch.tensor([[1 + 0.9 * 3 - 0, 2 + 0.9 * 6 - 3]]))


def small(experiment):
    config = {**experiment.scales["ci"], "runs": 2, "epochs": [1, 2]}
    return replace(experiment, scales={"full": config})


@pytest.mark.parametrize("name", [e.name for e in grid.EXPERIMENTS])
def test_every_experiment_runs_and_prints_its_table(name, tmp_path):
    experiment = small(next(e for e in grid.EXPERIMENTS if e.name == name))
    results = []
    for _ in range(2):
        file = experiments.run(experiment, where=tmp_path)
        results.append(imm.results.load(file.stem, tmp_path))
        table = experiment.table(results[-1])
        assert len({len(row) for row in table}) == 1 and len(table) > 1
    numbers = [[{**e["numbers"], "cpu_s": 0} for e in r["units"]] for r in results]
    assert numbers[0] == numbers[1]


def test_the_schedule_of_the_ratio():
    assert [grid.runs.ratio(e) for e in (10, 175, 200, 500)] == [0.2, 0.2, 0.1, 0.1]
    assert grid.target(Torus(3), "none") is None
    with pytest.raises(
        ValueError, match="target must be none, argmax, split or softmax TEMPERATURE, got 'best'"
    ):
        grid.target(Torus(3), "best")


LEARNING = {
    "runs 0": ({"runs": 0}, ValueError, "runs must be at least 1, got 0"),
    "lam < 0": ({"lam": -1.0}, ValueError, "lam must be .*-1"),
    "lam nan": ({"lam": float("nan")}, ValueError, "lam must be .*nan"),
    "lr": ({"lr": 0}, ValueError, "lr must be"),
    "no target": ({"target": None}, ValueError, "target must be given when lam is above 0"),
    "target's shape": (
        {"target": torch.full((4, 4), 0.25)},
        ValueError,
        r"target must be \(3, 4\)",
    ),
    "target's sums": ({"target": torch.ones(3, 4)}, ValueError, "target must sum to 1"),
}


@pytest.mark.parametrize("name", LEARNING)
def test_bad_learning(name):
    change, error, pattern = LEARNING[name]
    settings = {
        "runs": 2,
        "generator": generator(1),
        "target": torch.full((3, 4), 0.25),
        "lam": 0.5,
        **change,
    }
    with pytest.raises(error, match=pattern):
        next(grid.learn(Torus(3), **settings))
