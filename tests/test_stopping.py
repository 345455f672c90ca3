"""The fast informed bound at other units, other zeros and long horizons: it stops by what is left
to gain, and stays an upper bound.
"""

import math

import pytest
import torch
from worlds import generator

import imm_lib as imm


def random_pomdp(states=4, actions=3, seen=2, seed=0):
    g = generator(seed)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    return imm.FinitePOMDP.of(
        draw(actions, states, states).mul(2).softmax(-1),
        draw(actions, states, seen).mul(2).softmax(-1),
        draw(actions, states),
    )


def solution(model, discount):
    """By policy iteration over (action, state, observation) -> next action: linear systems, no
    stopping rule.
    """
    actions, states, seen = model.observation.shape
    joint = model.transition.unsqueeze(-1) * model.observation.unsqueeze(1)  # (A, S, S', O)
    choice = torch.zeros(actions, states, seen, dtype=torch.long)
    while True:
        step = torch.zeros(actions, states, actions, states, dtype=torch.float64)
        chosen = torch.nn.functional.one_hot(choice, actions).double()
        step = torch.einsum("asto,asob->asbt", joint, chosen)
        size = actions * states
        system = torch.eye(size, dtype=torch.float64) - discount * step.reshape(size, size)
        alpha = torch.linalg.solve(system, model.reward.reshape(-1)).view(actions, states)
        reached = torch.einsum("asto,bt->asob", joint, alpha)
        better = reached.amax(-1) > reached.gather(-1, choice.unsqueeze(-1)).squeeze(-1) + 1e-9
        if not better.any():
            return alpha
        choice = torch.where(better, reached.argmax(-1), choice)


@pytest.mark.parametrize("discount", [0.0, 0.5, 0.9, 0.99, 0.999, 0.9999])
@pytest.mark.parametrize("tolerance", [1e-1, 1e-3, 1e-5])
@pytest.mark.parametrize("seed", [0, 1])
def test_an_upper_bound_as_near_as_it_says(discount, tolerance, seed):
    model = random_pomdp(seed=seed)
    bound = imm.FastInformedBound.solve(model, discount, tolerance)
    excess = bound.alpha - solution(model, discount)
    assert excess.min() >= -1e-14 / (1 - discount) ** 2  # of the linear systems
    assert excess.max() <= bound.error + 1e-14 / (1 - discount) ** 2
    assert bound.error <= tolerance * (model.reward.max() - model.reward.min()) * (1 + 1e-9)


@pytest.mark.parametrize("factor", [1e-8, 1e-4, 1e4])
@pytest.mark.parametrize("shift", [-1e3, 0.0, 1e6])
def test_neither_unit_nor_zero_of_the_reward_decides(factor, shift):
    model = random_pomdp(seed=3)
    moved = imm.FinitePOMDP.of(
        model.transition, model.observation, factor * (model.reward + shift * (shift < 0) * 1e-3)
    )
    if shift > 0:
        moved = moved._replace(reward=model.reward + shift)
        factor = 1.0
    belief = torch.rand(200, 4, generator=generator(1), dtype=torch.float64)
    belief = belief / belief.sum(1, keepdim=True)
    expected = imm.FastInformedBound.solve(model, 0.95)
    found = imm.FastInformedBound.solve(moved, 0.95)
    assert found.sweeps == expected.sweeps > 10
    assert torch.equal(found(belief), expected(belief))
    assert torch.equal(found.split(belief), expected.split(belief))
    assert found.error == pytest.approx(factor * expected.error, rel=1e-3)
    spread = expected.alpha - expected.alpha.mean()
    torch.testing.assert_close(
        (found.alpha - found.alpha.mean()) / factor, spread, rtol=1e-6, atol=1e-6
    )


def test_a_policy_that_looks_ahead_at_any_unit():
    """Reward 1 where action 0 stays, 10 where action 1 leads to: at 1e-4 of it one sweep was enough
    for the old rule, and the policy took the first.
    """
    stay = torch.eye(2, dtype=torch.float64)
    go = torch.tensor([[0.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    reward = torch.tensor([[1.0, 10.0], [0.0, 10.0]], dtype=torch.float64)
    for unit in (1.0, 1e-4, 1e-12):
        model = imm.FinitePOMDP.of(
            torch.stack([stay, go]), torch.ones(2, 2, 1, dtype=torch.float64), unit * reward
        )
        bound = imm.FastInformedBound.solve(model, 0.9)
        assert bound(torch.tensor([[1.0, 0.0]])).tolist() == [[0.0, 1.0]]
        assert bound.alpha[0, 1].item() == pytest.approx(100 * unit, rel=1e-3)


@pytest.mark.parametrize("reward", [1.0, -1.0, 0.0, 1e-4])
@pytest.mark.parametrize("discount", [0.9, 0.999, 0.99999])
def test_a_constant_reward_is_worth_its_horizon(reward, discount):
    model = imm.FinitePOMDP.of(
        torch.tensor([[[0.5, 0.5], [0.0, 1.0]]]).double(),
        torch.ones(1, 2, 1).double(),
        torch.full((1, 2), reward, dtype=torch.float64),
    )
    bound = imm.FastInformedBound.solve(model, discount)
    assert bound.alpha.tolist()[0] == pytest.approx([reward / (1 - discount)] * 2, rel=1e-9)
    assert (bound.alpha >= reward / (1 - discount)).all()
    assert bound.sweeps == 1


def test_long_horizons_in_short():
    stay = torch.eye(2, dtype=torch.float64).unsqueeze(0)
    model = imm.FinitePOMDP.of(
        stay, torch.ones(1, 2, 1).double(), torch.tensor([[0.0, 1.0]]).double()
    )
    bound = imm.FastInformedBound.solve(model, 0.999)
    assert 1000 <= bound.alpha[0, 1] <= 1000.001 and 0 <= bound.alpha[0, 0] <= 0.001
    with pytest.raises(ValueError, match=r"max_sweeps must be enough .* off by"):
        imm.FastInformedBound.solve(model, 0.999, max_sweeps=100)
    with pytest.raises(ValueError, match=r"tolerance must be above .* does not resolve"):
        imm.FastInformedBound.solve(model, 1 - 1e-9)


def test_rows_that_nearly_sum_to_1_lose_no_value():
    """Rows of .3333: unnormalised, every step lost a ten-thousandth, a tenth of 1 / (1 - .999)."""
    third = torch.full((1, 3, 3), 0.3333, dtype=torch.float64)
    seen = torch.full((1, 3, 3), 0.3333, dtype=torch.float64)
    for dtype in (torch.float64, torch.float32):
        model = imm.FinitePOMDP.of(
            third.to(dtype), seen.to(dtype), torch.full((1, 3), 2.0).double()
        )
        assert model.transition.sum(-1).sub(1).abs().max() < 1e-15
        bound = imm.FastInformedBound.solve(model, 0.999)
        assert bound.alpha.tolist()[0] == pytest.approx([2000] * 3, rel=1e-9)
        belief = torch.full((1, 3), 0.3333, dtype=dtype)
        assert bound.utilities(belief).item() == pytest.approx(2000, rel=1e-9)
        after = model.update(belief[0], 0, 1)
        assert after.sum().item() == pytest.approx(1, abs=1e-15)


@pytest.mark.parametrize(
    "action, seen, error",
    [
        (-1, 0, ValueError),
        (3, 0, ValueError),
        (0, -1, ValueError),
        (0, 2, ValueError),
        (0.5, 0, ValueError),
        (0, True, TypeError),
        ("0", 0, TypeError),
    ],
)
def test_a_belief_is_updated_by_what_there_is(action, seen, error):
    model, belief = random_pomdp(), torch.full((4,), 0.25)
    with pytest.raises(error, match="action" if seen == 0 else "observation"):
        model.update(belief, action, seen)
    with pytest.raises(TypeError, match=r"belief must be a torch\.Tensor"):
        model.update([0.25] * 4, 0, 0)


def test_a_changed_model_is_checked_and_normalised():
    model = random_pomdp()
    rounded = model._replace(transition=model.transition * (1 - 1e-5))
    expected = imm.FastInformedBound.solve(model, 0.99).alpha
    torch.testing.assert_close(imm.FastInformedBound.solve(rounded, 0.99).alpha, expected)
    with pytest.raises(ValueError, match="transition must sum to 1"):
        imm.FastInformedBound.solve(model._replace(transition=model.transition * 0.9), 0.99)


def test_a_temperature_next_to_0_takes_the_best_action():
    bound = imm.FastInformedBound.solve(random_pomdp(), 0.9)
    belief = torch.full((1, 4), 0.25)
    torch.testing.assert_close(bound.softmax(belief, 1e-310), bound(belief))


def test_policies_of_several_beliefs_by_their_definitions():
    model = random_pomdp(states=3, actions=3)
    alpha = torch.tensor([[2.0, 0.0, 1.0], [0.0, 2.0, 1.0], [1.5, 0.0, 1.0]], dtype=torch.float64)
    bound = imm.FastInformedBound(model, alpha, sweeps=1)
    beliefs = torch.tensor([[0.6, 0.3, 0.1], [0.0, 0.0, 1.0], [0.2, 0.7, 0.1]]).double()
    utilities = [
        [math.fsum(b * a for b, a in zip(row, v, strict=True)) for v in alpha.tolist()]
        for row in beliefs.tolist()
    ]
    assert torch.allclose(bound.utilities(beliefs), torch.tensor(utilities, dtype=torch.float64))
    assert bound(beliefs).tolist() == [[1, 0, 0], [1, 0, 0], [0, 1, 0]]
    third = pytest.approx(1 / 3, rel=1e-15)
    assert bound.split(beliefs).tolist() == [[1, 0, 0], [third] * 3, [0, 1, 0]]
    weights = [[math.exp(u / 0.25) for u in row] for row in utilities]
    expected = torch.tensor([[w / math.fsum(row) for w in row] for row in weights]).double()
    torch.testing.assert_close(bound.softmax(beliefs, 0.25), expected, rtol=1e-6, atol=0)
    for rows in (bound(beliefs), bound.split(beliefs), bound.softmax(beliefs, 1.0)):
        assert rows.dtype == torch.float64


def test_where_nothing_pays_every_action_is_best():
    model = random_pomdp(states=2, actions=2)
    nothing = imm.FinitePOMDP(model.transition, model.observation, torch.zeros_like(model.reward))
    bound = imm.FastInformedBound.solve(nothing, 0.9)
    belief = torch.tensor([[0.5, 0.5]], dtype=torch.float64)
    assert bound.alpha.abs().max() == 0
    assert bound(belief).tolist() == [[1, 0]]
    assert bound.split(belief).tolist() == [[0.5, 0.5]]
