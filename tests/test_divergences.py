"""Divergences on induced models: laws, limits, gradients through every estimator, and what is
consistent.
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import imm_lib as imm
from imm_lib import divergences
from imm_lib.divergences import NAMED, alpha, as_divergence, balanced, plackett_luce, pull, sinkhorn

COST = (torch.arange(4.0).unsqueeze(1) - torch.arange(4.0)).abs().double()
ALL = {**NAMED, "alpha -0.5": alpha(-0.5), "alpha 2": alpha(2.0), "sinkhorn": sinkhorn(COST, 0.3)}
PROPER = {name: d for name, d in ALL.items() if name not in ("cross-entropy", "Plackett-Luce")}


def rows(*shape, seed=0, sharpness=1.5):
    generator = torch.Generator().manual_seed(seed)
    return (sharpness * torch.randn(*shape, generator=generator, dtype=torch.float64)).softmax(-1)


@pytest.mark.parametrize("name", PROPER)
def test_zero_at_equality_and_positive_elsewhere(name):
    p, q = rows(50, 4), rows(50, 4, seed=1)
    torch.testing.assert_close(
        PROPER[name](p, p.log()), torch.zeros(50, dtype=torch.float64), atol=1e-7, rtol=0
    )
    assert (PROPER[name](p, q.log()) > 1e-4).all()


@given(st.lists(st.floats(0.01, 1), min_size=2, max_size=5), st.integers(0, 100))
def test_relations(weights, seed):
    p = torch.tensor(weights, dtype=torch.float64)
    p, q = p / p.sum(), rows(len(weights), seed=seed)
    forward, reverse = divergences.forward_kl(p, q.log()), divergences.reverse_kl(p, q.log())
    tv, hellinger = (
        divergences.total_variation(p, q.log()),
        divergences.squared_hellinger(p, q.log()),
    )
    js = divergences.jensen_shannon(p, q.log())
    assert hellinger - 1e-12 <= tv <= (hellinger * (2 - hellinger)).clamp(min=0).sqrt() + 1e-9
    assert forward >= 2 * tv**2 - 1e-12  # Pinsker
    assert -1e-12 <= js <= math.log(2)
    torch.testing.assert_close(alpha(0.5)(p, q.log()), 4 * hellinger)
    torch.testing.assert_close(balanced(0.3)(p, q.log()), 0.3 * forward + 0.7 * reverse)
    torch.testing.assert_close(alpha(1 - 1e-6)(p, q.log()), forward, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(alpha(1e-6)(p, q.log()), reverse, atol=1e-4, rtol=1e-4)
    assert alpha(1)(p, q.log()) == forward and alpha(0)(p, q.log()) == reverse


def test_zeros():
    p, q = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.5, 0.5, 0.0])
    for name, divergence in NAMED.items():
        value = divergence(p, q.log())
        assert value.isinf() if name in ("reverse KL", "balanced") else value.isfinite(), name
    assert divergences.reverse_kl(q, p.log()) == pytest.approx(math.log(2))
    assert divergences.forward_kl(q, p.log()).isinf()


@pytest.mark.parametrize("name", ALL)
def test_the_pull_times_the_crosstalk_is_autograds_gradient(name):
    target, log_q = rows(3, 4), rows(3, 5, 4, seed=1).log().requires_grad_()
    (expected,) = torch.autograd.grad(ALL[name](target, imm.induce(log_q)).sum(), log_q)
    weight = pull(ALL[name], target, imm.induce(log_q.detach()))
    torch.testing.assert_close(
        -weight.unsqueeze(1) * imm.crosstalk(log_q), expected, atol=1e-7, rtol=1e-6
    )


def test_sinkhorns_gradient_by_finite_differences():
    target, log_q = rows(4), rows(4, seed=1).log()
    divergence = sinkhorn(COST, 0.3)
    found, numeric, step = (
        pull(divergence, target, log_q),
        torch.empty(4, dtype=torch.float64),
        1e-5,
    )
    for label in range(4):
        ends = []
        for sign in (1, -1):
            moved = log_q.clone()
            moved[label] += sign * step
            ends.append(divergence(target, moved - moved.logsumexp(-1)))
        numeric[label] = (ends[1] - ends[0]) / (2 * step)
    # the numeric one stays on the simplex: compare what is left of both there
    q = log_q.exp()
    torch.testing.assert_close(found - q * found.sum(), numeric, atol=1e-4, rtol=1e-3)


def test_sinkhorn_knows_what_is_near():
    here, near, far = (torch.eye(4, dtype=torch.float64)[i] * 0.96 + 0.01 for i in (0, 1, 3))
    divergence = sinkhorn(COST, 0.05)
    assert divergence(here, far.log()) > 2 * divergence(here, near.log())
    symmetric = divergences.total_variation
    torch.testing.assert_close(symmetric(here, far.log()), symmetric(here, near.log()))
    assert divergence(here, far.log()) == pytest.approx(
        (here - far).cumsum(0)[:-1].abs().sum().item(), rel=0.05
    )


def test_plackett_luce_is_the_probability_of_the_order():
    q = rows(3)
    target = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    expected = q[1] * q[2] / (q[2] + q[0])
    assert plackett_luce(target, q.log()).exp().reciprocal() == pytest.approx(expected.item())


class Model:
    """A free table of logits over 2 short and 3 extended contexts each, with 4 labels."""

    def __init__(self):
        self.logits = rows(2, 3, 4, seed=3).log().requires_grad_()
        self.short = torch.tensor([0, 0, 0, 1, 1, 1])
        self.extended = torch.tensor([0, 1, 2, 0, 1, 2])
        self.target = rows(2, 4, seed=4)
        self.contexts = imm.BeliefContexts(torch.full((2, 3), 1 / 3, dtype=torch.float64))

    def query(self, short, extended):
        return self.logits[short, extended].log_softmax(-1)

    def gradient(self, loss):
        return torch.autograd.grad(loss, self.logits)[0]

    def exact(self, divergence):
        estimator = imm.ExactIMM(self.target, self.contexts, divergence)
        return self.gradient(estimator(self.query, self.short)), estimator.risk


@pytest.mark.parametrize("name", ALL)
def test_sequential_is_joint(name):
    model = Model()
    found = []
    for sequential in (False, True):
        draws = torch.Generator().manual_seed(0)
        estimator = imm.SampledIMM(
            model.target, model.contexts, 5, sequential, draws, divergence=ALL[name]
        )
        loss = 1.7 * estimator(model.query, model.short)
        found.append((estimator.risk, model.gradient(loss)))
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("name", ALL)
def test_serialized_and_moving_average_have_the_exact_gradient_at_an_exact_table(name):
    model = Model()
    expected, risk = model.exact(ALL[name])
    log_q = model.query(model.short, model.extended)
    serialized = imm.SerializedIMM(model.target, 2, 4, divergence=ALL[name]).double()
    serialized.refresh([(log_q.detach(), model.short)])
    torch.testing.assert_close(
        model.gradient(serialized(log_q, model.short, log_q.detach())), expected
    )
    torch.testing.assert_close(serialized.risk, risk)
    average = imm.MovingAverageIMM(model.target, 2, 4, momentum=1.0, divergence=ALL[name]).double()
    log_q = model.query(model.short, model.extended)
    torch.testing.assert_close(model.gradient(average(log_q, model.short)), expected)
    torch.testing.assert_close(average.risk, risk)


@pytest.mark.parametrize("name", PROPER)
def test_consistent_on_induced_models_and_not_on_the_model_itself(name):
    """At the true model the gradient of D(P̄ ‖ Q̄) vanishes, that of the mean of D(P̄ ‖ Q) does
    not.
    """
    model = Model()
    p_bar = model.logits.detach().exp().mean(1)
    model.target = p_bar
    gradient, risk = model.exact(PROPER[name])
    # total variation has a kink there: its least value says the same
    assert risk.abs() < 1e-9 and (name == "total variation" or gradient.abs().max() < 1e-6)
    noising = imm.SampledNoising(p_bar, model.contexts, 500, divergence=PROPER[name])
    assert model.gradient(noising(model.query, model.short)).abs().max() > 1e-3


def test_the_default_is_the_cross_entropy():
    model = Model()
    expected, risk = model.exact("cross-entropy")
    found = imm.ExactIMM(model.target, model.contexts)
    torch.testing.assert_close(model.gradient(found(model.query, model.short)), expected)
    forward = model.exact("forward KL")
    torch.testing.assert_close(forward[0], expected)
    entropy = torch.special.entr(model.target).sum(-1).mean()
    torch.testing.assert_close(forward[1] + entropy, risk)


def test_bad_input():
    model = Model()
    for build in (
        lambda d: imm.ExactIMM(model.target, model.contexts, d),
        lambda d: imm.SampledIMM(model.target, model.contexts, divergence=d),
        lambda d: imm.SampledNoising(model.target, model.contexts, divergence=d),
        lambda d: imm.SerializedIMM(model.target, 2, 4, d),
        lambda d: imm.MovingAverageIMM(model.target, 2, 4, divergence=d),
        as_divergence,
    ):
        with pytest.raises(
            ValueError, match=r"divergence must be one of .*Jensen-Shannon.*got 'kl'"
        ):
            build("kl")
        with pytest.raises(TypeError, match="divergence must be a name or a function"):
            build(3)
    for bad, words in (
        (torch.ones(2, 3), r"\(Y, Y\)"),
        (torch.tensor([[0.0, 1.0], [2.0, 0.0]]), "symmetric"),
        (torch.tensor([[1.0, 1.0], [1.0, 1.0]]), "diagonal"),
        (torch.tensor([[0.0, -1.0], [-1.0, 0.0]]), "not negative"),
        (torch.tensor([[0.0, math.inf], [math.inf, 0.0]]), "finite"),
    ):
        with pytest.raises(ValueError, match=words):
            sinkhorn(bad)
    with pytest.raises(TypeError, match="cost"):
        sinkhorn(torch.zeros(2, 2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"cost must be \(3, 3\)"):
        sinkhorn(COST)(rows(3), rows(3).log())
    with pytest.raises(ValueError, match="epsilon"):
        sinkhorn(COST, 0.0)
    with pytest.raises(ValueError, match="positive definite"):
        sinkhorn(torch.zeros(2, 2))  # labels that cost nothing to change are one label
    with pytest.raises(ValueError, match="weight"):
        balanced(1.5)
    with pytest.raises(ValueError, match="order"):
        alpha(math.inf)


def test_without_the_transport_library(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "ot.batch", None)
    with pytest.raises(ImportError, match=r"imm_lib\[transport\]"):
        sinkhorn(COST)


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (lambda p, log_q: (p * -log_q).sum(-1).mean(), ValueError, "one value per row"),
        (lambda p, log_q: p * -log_q, ValueError, "one value per row"),
        (lambda p, log_q: "far", TypeError, r"divergence\(target, log_q\) must be a torch.Tensor"),
        (lambda p, log_q: log_q.sum(-1).long(), TypeError, "floating-point"),
    ],
    ids=["a mean", "no sum", "text", "integers"],
)
def test_answers_of_a_divergence_from_outside_are_checked(answer, error, words):
    """A mean over the batch was taken for the risk of every row."""
    model = Model()
    log_q = model.query(model.short, model.extended)
    for call in (
        lambda: imm.ExactIMM(model.target, model.contexts, answer)(model.query, model.short),
        lambda: imm.SampledNoising(model.target, model.contexts, divergence=answer)(
            model.query, model.short
        ),
        lambda: imm.MovingAverageIMM(model.target, 2, 4, divergence=answer).double()(
            log_q, model.short
        ),
    ):
        with pytest.raises(error, match=words):
            call()


def test_only_divergences_from_outside_are_checked():
    def outside(target, log_q):
        return -(target * log_q).sum(-1)

    own = alpha(0.5)
    assert as_divergence(own) is own
    checked = as_divergence(outside)
    assert checked is not outside
    assert callable(as_divergence(torch.Tensor.dist))  # a callable that tells no module
    for p, q in ((rows(4), rows(2, 3, 4)), (rows(2, 3, 4), rows(4)), (rows(2, 1, 4), rows(3, 4))):
        assert checked(p, q.log()).shape == (2, 3)
    with pytest.raises(ValueError, match="cross-entropy, forward KL, reverse KL"):
        as_divergence("KL")
    with pytest.raises(ValueError, match=r"^order must be"):
        alpha(math.nan)
    with pytest.raises(ValueError, match=r"^weight must be"):
        balanced(2.0)


def test_a_divergence_from_outside_works_in_every_estimator():
    model = Model()
    own = lambda p, log_q: -(p * log_q).sum(-1)  # noqa: E731
    expected = model.exact("cross-entropy")
    torch.testing.assert_close(model.exact(own), expected)
    average = imm.MovingAverageIMM(model.target, 2, 4, momentum=1.0, divergence=own).double()
    log_q = model.query(model.short, model.extended)
    torch.testing.assert_close(model.gradient(average(log_q, model.short)), expected[0])
    constant = lambda p, log_q: p.sum(-1)  # noqa: E731
    with pytest.raises(ValueError, match="must depend on log_q"):
        pull(constant, model.target, model.target.log())
