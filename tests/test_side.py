"""Finite worlds: the batched fit against autograd, EM, and simulation against the theory of imm_lib.worth."""

import math

import pytest
import torch

import imm_lib as imm
from imm_lib.experiments.side import LogitWorld, asymptotics, complete, fit


@pytest.fixture(scope="module")
def world():
    return LogitWorld.draw()


def setting(world, n=60, ratio=2.0, known=False, runs=5, seed=0):
    return asymptotics.data(world, n, ratio, known, runs, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("ratio", [2.0, math.inf])
@pytest.mark.parametrize("lam", [0.0, 0.7, 5.0])
def test_the_fit_is_where_the_librarys_risk_is_least(world, known, ratio, lam):
    counts, pairs, belief = setting(world, ratio=ratio, known=known)
    theta, found = fit(world.features, counts, pairs, belief, lam)
    assert found.all()
    for run in range(len(counts)):
        point = theta[run].clone().requires_grad_()
        logit = torch.einsum("sed,d->se", world.features, point)
        log_q = torch.stack([torch.zeros_like(logit), logit], -1).log_softmax(-1)
        weight = pairs[run].sum(1)
        target = pairs[run] / weight.unsqueeze(1)
        risk = -(counts[run] * log_q).sum() + lam * (weight * imm.imm_risk(target, log_q, belief[run].log())).sum()
        (gradient,) = torch.autograd.grad(risk, point)
        assert gradient.abs().max() < 1e-8


def test_em_climbs_to_the_same_maximum(world):
    """With a known π, λ · IMM with λ = m/n is the log-likelihood of the restricted samples, and EM maximises it."""
    counts, pairs, belief = setting(world, n=60, ratio=2.0, known=True)
    direct, _ = fit(world.features, counts, pairs, belief, lam=2.0)

    def likelihood(theta):
        q = torch.sigmoid(torch.einsum("sed,rd->rse", world.features, theta))
        one = (belief * q).sum(2)
        full = torch.xlogy(counts[..., 1], q) + torch.xlogy(counts[..., 0], 1 - q)
        return full.sum((1, 2)) + 2.0 * (torch.xlogy(pairs[..., 1], one) + torch.xlogy(pairs[..., 0], 1 - one)).sum(1)

    theta, _ = fit(world.features, counts)
    values = [likelihood(theta)]
    for _ in range(400):
        theta, _ = fit(world.features, counts + 2.0 * complete(world.features, theta, pairs, belief))
        values.append(likelihood(theta))
    assert (torch.stack(values).diff(dim=0) > -1e-12).all()
    torch.testing.assert_close(theta, direct, atol=1e-5, rtol=1e-5)


def test_ems_responsibilities_are_the_frozen_ratio_of_serialized_imm(world):
    counts, pairs, belief = setting(world, known=True, runs=1)
    theta, _ = fit(world.features, counts)
    shared = complete(world.features, theta, pairs, belief)[0]
    torch.testing.assert_close(shared.sum(1), pairs[0])
    logit = torch.einsum("sed,d->se", world.features, theta[0])
    log_q = torch.stack([torch.zeros_like(logit), logit], -1).log_softmax(-1)
    torch.testing.assert_close(shared, pairs[0].unsqueeze(1) * imm.crosstalk(log_q, belief[0].log()))


def test_theory_and_simulation_meet(world):
    worth = world.worth()
    for ratio, known, lam in ((2.0, True, 1.0), (2.0, False, 1.0), (math.inf, False, 3.0), (0.5, True, 3.0)):
        counts, pairs, belief = setting(world, 4000, ratio, known, 400, seed=1)
        theta, found = fit(world.features, counts, pairs, belief, lam)
        excess = world.excess(theta)
        assert found.all()
        theory = worth.excess_risk(lam, 4000, ratio * 4000, known)
        assert abs(excess.mean() - theory) < 3 * excess.std() / 20


def test_noising_has_a_floor(world):
    floors = {lam: asymptotics.noising_floor(world, lam) for lam in (0.01, 0.02, 0.3)}
    off = {lam: linear / exact - 1 for lam, (exact, linear) in floors.items()}
    assert abs(off[0.01]) < 0.03 and off[0.02] == pytest.approx(2 * off[0.01], rel=0.1)  # first order in λ
    assert floors[0.3][0] > floors[0.02][0] > floors[0.01][0] > 0
    counts = world.sample(20_000, 50, torch.Generator().manual_seed(0))
    theta, _ = fit(world.features, asymptotics.noised(world, counts, 1.0))
    assert world.excess(theta).mean() == pytest.approx(asymptotics.noising_floor(world, 1.0)[0], rel=0.05)
    assert world.excess(fit(world.features, counts)[0]).mean() < 0.05 * asymptotics.noising_floor(world, 1.0)[0]


def test_separable_data_have_no_minimum(world):
    counts = torch.zeros(2, 4, 6, 2, dtype=torch.float64)
    counts[..., 1] = 1 / 24
    counts[1] = world.sample(400, 1, torch.Generator().manual_seed(0))[0]
    assert fit(world.features, counts)[1].tolist() == [False, True]


def test_bad_input(world):
    counts = world.sample(10, 1, torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="lam"):
        fit(world.features, counts, lam=-1.0)
    with pytest.raises(ValueError, match="pairs and belief"):
        fit(world.features, counts, lam=1.0)
    with pytest.raises(ValueError, match="runs"):
        world.sample(10, 0, torch.Generator())
