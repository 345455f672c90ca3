"""The tabular world: Proposition 6.1 in numbers, and every quantity against plain enumeration."""

import math

import pytest
import torch
from worlds import generator, random_log_q

import imm_lib as imm

GAPS = {0.2: 0.0431, 1.0: 0.1707, 1.5: 0.2158}
"""KL(P ‖ Q*) in nats of the paper's tensor by λ. The paper prints the tensor alone."""


def random_world(seed: int = 0, shape: tuple[int, int, int] = (3, 4, 3)) -> imm.TabularWorld:
    joint = torch.rand(shape, generator=generator(seed), dtype=torch.float64)
    return imm.TabularWorld(joint / joint.sum())


def test_against_enumeration():
    world, log_q = random_world(), random_log_q(3, 4, 3)
    joint, q = world.joint.tolist(), log_q.exp().tolist()
    labels, extended = range(3), range(4)
    imm_risk = noising_risk = cross_entropy = kl = 0.0
    for s in range(3):
        pi_s = sum(joint[s][e][y] for e in extended for y in labels)
        pi_e = [sum(joint[s][e]) / pi_s for e in extended]
        p_bar = [sum(joint[s][e][y] for e in extended) / pi_s for y in labels]
        q_bar = [sum(pi_e[e] * q[s][e][y] for e in extended) for y in labels]
        assert world.induced[s].tolist() == pytest.approx(p_bar)
        assert world.induce(log_q)[s].exp().tolist() == pytest.approx(q_bar)
        imm_risk -= pi_s * sum(p_bar[y] * math.log(q_bar[y]) for y in labels)
        for e in extended:
            noising_risk -= pi_s * pi_e[e] * sum(p_bar[y] * math.log(q[s][e][y]) for y in labels)
            for y in labels:
                cross_entropy -= joint[s][e][y] * math.log(q[s][e][y])
                kl += joint[s][e][y] * math.log(joint[s][e][y] / sum(joint[s][e]) / q[s][e][y])
    assert world.imm_risk(log_q).item() == pytest.approx(imm_risk)
    assert world.noising_risk(log_q).item() == pytest.approx(noising_risk)
    assert world.cross_entropy(log_q).item() == pytest.approx(cross_entropy)
    assert world.kl(log_q).item() == pytest.approx(kl)
    assert world.kl(world.conditional.log()).item() == pytest.approx(0.0, abs=1e-15)


def test_proposition_on_the_papers_tensor():
    world = imm.counterexample()
    assert world.pi.tolist() == [pytest.approx([0.4, 0.3]), pytest.approx([0.2, 0.1])]
    flat = torch.full((2, 2, 2), 0.5, dtype=torch.float64).log()
    assert world.g(flat).item() == pytest.approx(-1.0980, abs=5e-5)
    for lam, gap in GAPS.items():
        assert world.kl(world.noising_minimiser(lam).log()).item() == pytest.approx(gap, abs=5e-5)


@pytest.mark.parametrize("make", [imm.counterexample, random_world], ids=["paper", "random"])
@pytest.mark.parametrize("lam", [0.0, 0.2, 1.5])
def test_noising_minimiser_is_the_minimiser(make, lam):
    world = make()
    found = world.minimise("noising", lam, generator())
    torch.testing.assert_close(found.exp(), world.noising_minimiser(lam), atol=1e-5, rtol=0)

    def objective(log_q):
        return world.cross_entropy(log_q) + lam * world.noising_risk(log_q)

    best = objective(world.noising_minimiser(lam).log())
    assert all(objective(random_log_q(*world.joint.shape, seed=seed)) > best for seed in range(20))


@pytest.mark.parametrize("lam", [0.1, 1.0, 10.0])
def test_imm_returns_the_true_model_from_20_random_starts(lam):
    world = imm.counterexample()
    for seed in range(20):
        found = world.minimise("imm", lam, generator(seed))
        torch.testing.assert_close(found.exp(), world.conditional, atol=1e-5, rtol=0)


def test_a_pair_of_contexts_without_mass_changes_nothing():
    joint = random_world().joint.clone()
    joint[1, 2] = 0
    world = imm.TabularWorld(joint / joint.sum())
    assert torch.isfinite(world.conditional).all()
    assert world.kl(world.conditional.log()).item() == pytest.approx(0.0, abs=1e-15)
    assert world.contexts().log_weights(torch.tensor([1]))[0, 2] == -math.inf


def test_what_a_world_refuses():
    with pytest.raises(ValueError, match="got 0 for s = 1"):
        imm.TabularWorld(torch.tensor([[[0.5, 0.5]], [[0.0, 0.0]]]))
    world = random_world()
    with pytest.raises(ValueError, match=r"^objective must be one of \['imm', 'noising'\]"):
        world.minimise("both", 1.0)
    for call in (lambda: world.minimise("imm", -1.0), lambda: world.noising_minimiser(-1.0)):
        with pytest.raises(ValueError, match=r"^lam must be"):
            call()
    assert torch.equal(world.contexts().belief, world.belief)
