"""The five uses of a restricted model: the expansions against simulation, and bad input."""

import math

import pytest
import torch

import imm_lib as imm
from imm_lib.experiments.finite.simulations import noised
from imm_lib.experiments.finite.worlds import LogitWorld, Restriction, by_view, fit, share
from imm_lib.uses import USES, compare

N = 3000


@pytest.fixture(scope="module")
def world():
    return LogitWorld.draw()


def comparison(world, target=None, n=N, decay=0.0, seed=0):
    """At the true parameters, on a sample so large that its matrices are nearly exact."""
    generator = torch.Generator().manual_seed(seed)
    view, theta = world.views["s"], world.theta.clone().requires_grad_()
    cells = torch.multinomial(world.pi, n, True, generator=generator)

    def query(short, extended):
        logit = world.features[cells[extended]] @ theta
        return torch.stack([torch.zeros_like(logit), logit], 1).log_softmax(1)

    joint = torch.zeros(4, 2, dtype=torch.float64).index_add_(0, view, world.joint())
    drawn = torch.multinomial(joint.flatten(), 5000, True, generator=generator)
    rows = world.target(view) if target is None else target
    contexts = imm.GroupedContexts(view[cells], 4)
    pairs = drawn // 2, drawn % 2
    sample = view[cells], torch.arange(n)
    return compare(query, [theta], contexts, *sample, rows, pairs, decay, damping=0.0)


@pytest.fixture(scope="module")
def found(world):
    return comparison(world)


def simulated(world, use, rho, n=800, runs=1500):
    """Mean excess risk and its standard error."""
    counts = world.sample(n, runs, torch.Generator().manual_seed(3))
    view, lam = world.views["s"], rho / (1 - rho)
    rows, cells = world.target(view), counts.sum(-1)
    if use == "reverse distillation":
        excess = world.excess(fit(world.features, noised(world, counts, lam))[0])
    elif use == "IMM":
        short = by_view(cells, view).unsqueeze(2)
        term = Restriction(view, short * rows, share(cells, view), lam)
        excess = world.excess(fit(world.features, counts, [term])[0])
    else:
        p = world.probability(world.theta)
        q = world.probability(fit(world.features, counts)[0])
        m = (1 - rho) * q + rho * rows[view, 1]
        kl = torch.xlogy(p, p / m) + torch.xlogy(1 - p, (1 - p) / (1 - m))
        excess = (world.pi * kl).sum(1)
    return excess.mean().item(), (excess.std() / runs**0.5).item()


@pytest.mark.parametrize("use", ["plain", "interpolation", "reverse distillation", "IMM"])
@pytest.mark.parametrize("rho", [0.05, 0.3])
def test_the_risks_are_those_of_a_simulation(world, found, use, rho):
    rho = 0.0 if use == "plain" else rho
    mean, error = simulated(world, use, rho)
    expected = found.risk(use, rho, 800)
    # second order: a tenth at 800 points; what the model cannot express of the mixture is a guess
    room = 0.2 if use == "reverse distillation" and rho == 0.3 else 0.1
    assert abs(mean - expected) < room * expected + 3 * error


def test_plain_and_imm_are_those_of_worth(world, found):
    worth = imm.worth.Worth.of(*world.informations(world.views["s"]))
    for rho in (0.0, 0.2, 0.5):
        expected = worth.excess_risk(rho / (1 - rho), 500)
        assert found.risk("IMM", rho, 500) == pytest.approx(expected, rel=0.03)
    assert found.risk("plain", 0.0, 500) == pytest.approx(4 / 1000, rel=1e-6)


def test_a_right_target_makes_imm_the_first_choice_and_a_wrong_one_does_not(world, found):
    assert found.expected(50, torch.Generator().manual_seed(0))[0].use == "IMM"
    wrong = comparison(world, world.target(world.views["s"]).flip(1), n=400)
    ranked = wrong.expected(50, torch.Generator().manual_seed(0))
    assert ranked[0].share == 0 or ranked[0].use == "plain"
    assert wrong.risk("IMM", 0.5) > wrong.risk("plain", 0.0)
    assert sum(each.first for each in ranked) == pytest.approx(1)
    assert {each.use for each in ranked} == set(USES)


def test_uses_cross_where_variance_gives_way_to_bias(world, found):
    sizes = [10, 20, 50, 100, 200, 500, 1000]
    assert found.crossing("interpolation", "IMM", sizes) <= 200
    assert found.crossing("IMM", "reverse distillation", sizes) == math.inf


def test_an_offset_moves_the_point_that_the_penalty_pulls_to(world):
    found = comparison(world, decay=30.0)
    # log P̂ is not linear in the features, so that a share of it costs a little in distribution
    assert found.floor > 0
    gain = found.risk("plain", 0.0, 50) - found.risk("offset", 0.5, 50)
    assert gain > 0
    none = comparison(world)
    assert none.risk("offset", 0.5) > none.risk("plain", 0.0)


def test_unlabelled_contexts_lower_the_price_of_counting():
    worth = imm.worth.Worth(torch.tensor([1.0, 0.5]), torch.tensor([0.4, 0.2]))
    plain, known = worth.excess_risk(1.0, 100), worth.excess_risk(1.0, 100, known=True)
    risks = [worth.excess_risk(1.0, 100, unlabelled=u) for u in (0, 100, 1000, 1e9)]
    assert risks == sorted(risks, reverse=True) and risks[0] == plain
    assert risks[-1] == pytest.approx(known)
    assert risks[1] == pytest.approx((plain + known) / 2)
    assert worth.optimal_lambda(100, unlabelled=900) > worth.optimal_lambda(100)
    with pytest.raises(ValueError, match="unlabelled"):
        worth.excess_risk(1.0, 100, unlabelled=-1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decay": -1.0}, "decay must be at least 0"),
        ({"decay": torch.ones(3)}, r"decay must be at least 0, a number or \(2,\)"),
        ({"pairs": (torch.zeros(1).long(), torch.zeros(1).long())}, "at least two pairs"),
        (
            {"pairs": (torch.zeros(3).long(), torch.zeros(2).long())},
            "pairs' labels must be .*, as long as",
        ),
        ({"pairs": (torch.zeros(3).long(), torch.full((3,), 5))}, "pairs' labels"),
        ({"target": torch.full((1, 3), 1 / 3)}, "as the model has labels"),
        ({"damping": -1.0}, "damping must be"),
        ({"damping": math.nan}, "damping must be"),
    ],
)
def test_bad_input(change, message):
    theta = torch.tensor([0.5, -0.5], dtype=torch.float64, requires_grad=True)

    def query(short, extended):
        return torch.stack([torch.zeros(len(extended)), theta[extended]], 1).log_softmax(1)

    short = torch.zeros(2, dtype=torch.long)
    given = {
        "target": torch.tensor([[0.5, 0.5]]),
        "pairs": (torch.zeros(4).long(), torch.tensor([0, 1, 0, 1])),
        "decay": 0.0,
    }
    sample = short, torch.arange(2)
    with pytest.raises(ValueError, match=message):
        compare(query, [theta], imm.GroupedContexts(short), *sample, **given | change)
    found = compare(query, [theta], imm.GroupedContexts(short), *sample, **given)
    with pytest.raises(ValueError, match="use must be one of"):
        found.risk("magic", 0.1)
    with pytest.raises(ValueError, match="share must be"):
        found.risk("IMM", 1.0)
    for n in (0, -5, math.nan):
        with pytest.raises(ValueError, match="n must be"):
            found.risk("IMM", 0.5, n)
    logits = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)  # one too many each
    with pytest.raises(ValueError, match="full must be invertible"):
        compare(
            lambda short, extended: logits[extended].log_softmax(1),
            [logits],
            imm.GroupedContexts(short),
            *sample,
            **given,
            damping=0.0,
        )
