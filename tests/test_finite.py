"""Finite worlds: the batched fit against autograd, EM, and simulation against the theory of
imm_lib.worth.
"""

import math

import pytest
import torch

import imm_lib as imm
from imm_lib.experiments.finite import (
    LogitWorld,
    Restriction,
    complete,
    fit,
    penalties,
    several,
    simulations,
    tuning,
    worlds,
)
from imm_lib.experiments.finite.descent import minimise


@pytest.fixture(scope="module")
def world():
    return LogitWorld.draw()


def setting(world, n=60, ratio=2.0, known=False, runs=5, lam=2.0, seed=0):
    return simulations.data(world, n, ratio, known, runs, lam, torch.Generator().manual_seed(seed))


def log_rows(world, theta):
    logit = world.features @ theta
    return torch.stack([torch.zeros_like(logit), logit], -1).log_softmax(-1)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("ratio", [2.0, math.inf])
@pytest.mark.parametrize("lam", [0.0, 0.7, 5.0])
def test_the_fit_is_where_the_librarys_risk_is_least(world, known, ratio, lam):
    counts, term = setting(world, ratio=ratio, known=known, lam=lam)
    theta, found = fit(world.features, counts, [term])
    assert found.all()
    for run in range(len(counts)):
        point = theta[run].clone().requires_grad_()
        log_q = log_rows(world, point)
        weight, belief = term.pairs[run].sum(1), term.belief.expand(len(counts), -1)[run]
        target, log_q_by_view = (
            term.pairs[run] / weight.unsqueeze(1),
            log_q.view(4, 6, 2),
        )  # six cells of each s
        risks = imm.imm_risk(target, log_q_by_view, belief.view(4, 6).log())
        risk = -(counts[run] * log_q).sum() + lam * (weight * risks).sum()
        (gradient,) = torch.autograd.grad(risk, point)
        assert gradient.abs().max() < 1e-8


def test_two_restrictions_that_are_one(world):
    """Two terms of one view are one term with their sum of weights; a view of single cells is more
    full data.
    """
    counts, term = setting(world, lam=2.0)
    once, _ = fit(world.features, counts, [term])
    twice, _ = fit(world.features, counts, [term._replace(lam=0.5), term._replace(lam=1.5)])
    torch.testing.assert_close(once, twice, atol=1e-8, rtol=1e-8)
    more = world.sample(30, 5, torch.Generator().manual_seed(9))
    cells = torch.arange(24)
    whole = Restriction(cells, more, torch.ones(24, dtype=torch.float64), 0.5)
    torch.testing.assert_close(
        fit(world.features, counts, [whole])[0],
        fit(world.features, counts + 0.5 * more)[0],
        atol=1e-8,
        rtol=1e-8,
    )


def test_em_climbs_to_the_same_maximum(world):
    """With a known π, λ · IMM with λ = m/n is the log-likelihood of the restricted samples, and EM
    maximises it.
    """
    counts, term = setting(world, n=60, ratio=2.0, known=True)
    direct, _ = fit(world.features, counts, [term])

    def likelihood(theta):
        q = world.probability(theta)
        one = (term.belief * q).view(-1, 4, 6).sum(2)
        full = torch.xlogy(counts[..., 1], q) + torch.xlogy(counts[..., 0], 1 - q)
        pairs = torch.xlogy(term.pairs[..., 1], one) + torch.xlogy(term.pairs[..., 0], 1 - one)
        return full.sum(1) + 2.0 * pairs.sum(1)

    theta, _ = fit(world.features, counts)
    values = [likelihood(theta)]
    for _ in range(400):
        theta, _ = fit(world.features, counts + 2.0 * complete(world.features, theta, term))
        values.append(likelihood(theta))
    assert (torch.stack(values).diff(dim=0) > -1e-12).all()
    torch.testing.assert_close(theta, direct, atol=1e-5, rtol=1e-5)


def test_ems_responsibilities_are_the_frozen_ratio_of_serialized_imm(world):
    counts, term = setting(world, known=True, runs=1)
    theta, _ = fit(world.features, counts)
    shared = complete(world.features, theta, term)[0].view(4, 6, 2)
    torch.testing.assert_close(shared.sum(1), term.pairs[0])
    log_q = log_rows(world, theta[0]).view(4, 6, 2)
    belief = term.belief.view(4, 6)
    torch.testing.assert_close(
        shared, term.pairs[0].unsqueeze(1) * imm.crosstalk(log_q, belief.log())
    )


def test_theory_and_simulation_meet(world):
    worth = imm.worth.Worth.of(*world.informations(world.views["s"]))
    for ratio, known, lam in (
        (2.0, True, 1.0),
        (2.0, False, 1.0),
        (math.inf, False, 3.0),
        (0.5, True, 3.0),
    ):
        counts, term = setting(world, 4000, ratio, known, 400, lam, seed=1)
        theta, found = fit(world.features, counts, [term])
        excess = world.excess(theta)
        assert found.all()
        theory = worth.excess_risk(lam, 4000, ratio * 4000, known)
        assert abs(excess.mean() - theory) < 3 * excess.std() / 20


def test_noising_has_a_floor(world):
    floors = {lam: simulations.noising_floor(world, lam) for lam in (0.01, 0.02, 0.3)}
    off = {lam: linear / exact - 1 for lam, (exact, linear) in floors.items()}
    assert abs(off[0.01]) < 0.03 and off[0.02] == pytest.approx(
        2 * off[0.01], rel=0.1
    )  # first order in λ
    assert floors[0.3][0] > floors[0.02][0] > floors[0.01][0] > 0
    counts = world.sample(20_000, 50, torch.Generator().manual_seed(0))
    theta, _ = fit(world.features, simulations.noised(world, counts, 1.0))
    assert world.excess(theta).mean() == pytest.approx(
        simulations.noising_floor(world, 1.0)[0], rel=0.05
    )
    assert (
        world.excess(fit(world.features, counts)[0]).mean()
        < 0.05 * simulations.noising_floor(world, 1.0)[0]
    )


def test_separable_data_have_no_minimum(world):
    counts = torch.zeros(2, 24, 2, dtype=torch.float64)
    counts[..., 1] = 1 / 24
    counts[1] = world.sample(400, 1, torch.Generator().manual_seed(0))[0]
    assert fit(world.features, counts)[1].tolist() == [False, True]


def test_bad_input(world):
    counts = world.sample(10, 1, torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="lam"):
        fit(world.features, counts, [setting(world, lam=-1.0)[1]])
    with pytest.raises(ValueError, match="runs"):
        world.sample(10, 0, torch.Generator())


def test_any_divergence_is_fitted_to_the_same_truth():
    """With next to all data and a perfect target every proper divergence leaves the truth where it
    is.
    """
    world = LogitWorld.grid()
    counts, view = world.joint().unsqueeze(0), world.views["x1"]
    target = world.target(view)
    for name in (
        "cross-entropy",
        "reverse KL",
        "total variation",
        "squared Hellinger",
        "Cauchy-Schwarz",
    ):
        options = {"divergence": imm.divergences.NAMED[name], "lam": 1.0, "decay": 0.0}
        assert world.excess(penalties.fit(world, counts, view, target, **options)).item() < 1e-4
        assert (
            world.excess(
                penalties.fit(world, counts, view, target, matching="full", **options)
            ).item()
            > 1e-3
        )
    with pytest.raises(ValueError, match="matching"):
        penalties.fit(world, counts, view, target, imm.divergences.forward_kl, 1.0, "half")


def test_the_cross_entropy_by_descent_is_fisher_scoring():
    """Also where the weight makes some directions a thousand times steeper than others."""
    world, view = LogitWorld.grid(), LogitWorld.grid().views["x1"]
    counts = world.sample(300, 3, torch.Generator().manual_seed(0))
    for lam in (2.0, 1000.0):
        exact, found = fit(world.features, counts, [several.perfect(world, view, lam)])
        assert found.all()
        descent = penalties.fit(
            world, counts, view, world.target(view), imm.divergences.forward_kl, lam, decay=0.0
        )
        torch.testing.assert_close(descent, exact, atol=1e-5, rtol=1e-5)


def test_total_variation_is_a_constraint_where_its_weight_is_large():
    world, view = LogitWorld.grid(), LogitWorld.grid().views["x1"]
    counts, target, theta = (
        world.sample(100, 3, torch.Generator().manual_seed(0)),
        world.target(view),
        None,
    )
    for epsilon in penalties.ROUNDINGS:
        theta = penalties.fit(
            world, counts, view, target, penalties.rounded(epsilon), 100.0, start=theta
        )
    belief = worlds.share(world.pi, view)
    assert (
        worlds.by_view(belief * world.probability(theta), view) - target[:, 1]
    ).abs().max() < 1e-4
    smooth = penalties.fit(world, counts, view, target, imm.divergences.forward_kl, 100.0)
    assert (
        worlds.by_view(belief * world.probability(smooth), view) - target[:, 1]
    ).abs().max() > 1e-3
    p, log_q = target[:2], torch.tensor([[0.4, 0.6], [0.3, 0.7]], dtype=torch.float64).log()
    torch.testing.assert_close(
        penalties.rounded(1e-9)(p, log_q),
        imm.divergences.NAMED["total variation"](p, log_q),
        atol=1e-8,
        rtol=0,
    )


@pytest.mark.parametrize(
    "name", [name for name in imm.divergences.NAMED if name != "total variation"]
)
def test_every_fit_ends_where_its_gradient_is_nothing(name):
    """At a weight of a thousand too, and for a target of few pairs, which no parameters may
    reach.
    """
    world, generator = LogitWorld.grid(), torch.Generator().manual_seed(0)
    counts, view = world.sample(100, 3, generator), world.views["x1"]
    pairs = worlds.by_view(world.sample(30, 3, generator).mT, view).mT + 0.01
    for matching in ("induced", "full"):
        given = pairs / pairs.sum(-1, keepdim=True), imm.divergences.NAMED[name], 1000.0, matching
        theta = penalties.fit(world, counts, view, *given).requires_grad_()
        (slope,) = torch.autograd.grad(
            penalties.objective(world, counts, view, *given)(theta).sum(), theta
        )
        assert slope.abs().max() < 1e-3  # of terms of the order of a thousand


def test_descent_finds_minima_of_each_row():
    """A narrow valley, a kink, and a run that begins at its minimum."""

    def loss(theta):
        valley = 100 * (theta[:, 1] - theta[:, 0].square()).square() + (1 - theta[:, 0]).square()
        kink = (theta[:, 0] - 1).abs() + 2 * (theta[:, 1] - 1).square()
        return torch.stack([valley[0], kink[1], valley[2]])

    begin = torch.tensor([[-1.2, 1.0], [3.0, -2.0], [1.0, 1.0]], dtype=torch.float64)
    found = minimise(loss, begin)
    torch.testing.assert_close(found, torch.ones_like(found), atol=1e-5, rtol=0)
    assert torch.equal(found[2], begin[2]) and torch.equal(minimise(loss, begin, steps=0), begin)


def test_the_best_weight_is_read_with_its_runs():
    reads = {"0.0": {"excess": 0.2}, "1.0": {"excess": 0.1}}
    unit = {"unit": {"m": 200, "matching": "full", "divergence": "balanced"}}
    found = penalties.best(
        {"units": [unit | {"numbers": {"by_lam": reads, "best": "1.0", "runs": [0.1, 0.2]}}]}
    )
    read = found["200", "full", "balanced"]
    assert (read["excess"], read["lam"]) == (0.1, 1.0) and read["by_lam"][0]["excess"] == 0.2
    assert read["runs"].tolist() == pytest.approx([0.1, 0.2])


def test_reads_of_a_fit():
    world = LogitWorld.grid()
    theta = torch.stack([world.theta, torch.zeros_like(world.theta)])
    error, accuracy = penalties.calibration_error(world, theta), penalties.accuracy(world, theta)
    p = world.probability(world.theta)
    assert error[0] < 1e-12 and error[1] == pytest.approx((world.pi @ (p - 0.5)).abs().item())
    assert accuracy[0] == pytest.approx((world.pi @ torch.maximum(p, 1 - p)).item())
    assert accuracy[1] == pytest.approx((world.pi @ (1 - p)).item())


def test_two_views_determine_an_additive_world_and_leave_an_interaction_open():
    world = LogitWorld.grid(interaction=0.0)
    additive = LogitWorld(world.features[:, :5], world.pi, world.theta[:5], world.views)
    none = torch.zeros(1, 25, 2, dtype=torch.float64)
    terms = [several.perfect(additive, additive.views[name], 1.0) for name in ("x1", "x2")]
    theta, found = fit(additive.features, none, terms)
    assert found.all() and additive.excess(theta).item() < 1e-12
    assert (
        several.combined(world, ["x1"]).gain[-1]
        < 1e-9
        < several.combined(world, ["x1", "x2"]).gain[-1]
    )


def test_closed_informations_are_those_of_autograd(world):
    """At the true parameters, and at others with cells that nothing was seen of."""
    view = world.views["s"]
    for found, wanted in zip(
        worlds.closed_informations(
            world.features, world.pi.unsqueeze(0), view, world.theta.unsqueeze(0)
        ),
        world.informations(view),
        strict=True,
    ):
        torch.testing.assert_close(found[0], wanted)
    cells = world.sample(20, 3, torch.Generator().manual_seed(1)).sum(-1)
    cells[0, :6] = 0  # a short context that nothing was seen of
    found = worlds.closed_informations(
        world.features, cells, view, torch.randn(3, 4, dtype=torch.float64)
    )
    assert all(matrix.isfinite().all() and matrix.shape == (3, 4, 4) for matrix in found)
    assert (torch.linalg.eigvalsh(found[1] - found[2]) > -1e-12).all()  # K never exceeds J


def test_an_unseen_short_context_is_nothing_to_the_fit(world):
    """Of a short context without points there is no induced model; its term has weight 0, not
    NaN.
    """
    view, counts = world.views["s"], world.sample(40, 4, torch.Generator().manual_seed(2))
    counts[:, :6] = 0
    term = Restriction(
        view, worlds.by_view(counts.mT, view).mT, worlds.share(counts.sum(-1), view), 2.0
    )
    theta, found = fit(world.features, counts + 1e-3, [term])
    gradient, _ = worlds.derivatives(world.features, counts + 1e-3, [term], theta)
    assert found.all() and gradient.abs().max() < 1e-9
    assert worlds.hessian(world.features, counts + 1e-3, [term], theta).isfinite().all()


def test_second_derivatives_are_those_of_autograd(world):
    counts, term = setting(world, lam=1.5, runs=2)
    theta = torch.randn(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = worlds.hessian(world.features, counts, [term], theta)
    for run in range(2):

        def total(point, run=run):
            return worlds.value(
                world.features, counts, [term], theta.index_put((torch.tensor(run),), point)
            )[run]

        torch.testing.assert_close(found[run], torch.autograd.functional.hessian(total, theta[run]))


@pytest.fixture(scope="module")
def data():
    return tuning.Data(LogitWorld.draw(), 100, "inf", 6, torch.Generator().manual_seed(0))


def test_every_rule_gives_a_weight_per_data_set(data):
    for name, lam in tuning.chosen(data).items():
        assert lam.shape == (6,), name
        assert (lam >= 0).all() and (lam <= tuning.LARGEST + 1e-4).all(), name


def test_the_slope_by_lambda_is_a_difference_quotient(data):
    """And one step of Adam moves log λ against its sign."""
    high, low = (data.held_out(data.fit(torch.tensor(x).exp(), 0), 0) for x in (1e-3, -1e-3))
    slope = data.slope(torch.ones(6, dtype=torch.float64))
    torch.testing.assert_close(slope, (high - low) / 2e-3, rtol=1e-3, atol=1e-6)
    moved = tuning.validation_gradient(data, steps=1, rate=0.1).log()
    assert (moved.sign() == -slope.sign()).all()


def test_a_weight_per_data_set_is_that_weight(data):
    lam = torch.tensor([0.0, 0.5, 1.0, 2.0, 4.0, 8.0])
    together = data.fit(lam)
    for i, value in enumerate(lam.tolist()):
        torch.testing.assert_close(together[i], data.fit(value)[i], atol=1e-7, rtol=1e-7)
