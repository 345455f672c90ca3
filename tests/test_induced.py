"""The induced model and its risks against brute force, and the laws they obey."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import brute_induce, brute_risk, random_log_q, random_probabilities

import imm_lib as imm
from imm_lib.sums import log_sum_exp, log_sum_exp_, segment_logsumexp

SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 5), st.integers(0, 10**6))


@pytest.mark.parametrize("ours", [log_sum_exp, log_sum_exp_])
def test_sums_of_exponentials_are_torchs(ours):
    x = 300 * torch.randn(2, 5, 3, dtype=torch.float64)
    x[0, 1:, 0], x[1, :, 2] = -math.inf, -math.inf
    torch.testing.assert_close(ours(x.clone()), x.logsumexp(-2))


@given(SHAPES)
@settings(max_examples=60, deadline=None)
def test_against_brute_force(shape):
    batch, k, labels, seed = shape
    log_q = random_log_q(batch, k, labels, seed=seed)
    log_w = random_log_q(batch, k, seed=seed + 1)
    target = random_probabilities(batch, labels, seed=seed + 2)
    induced, risk = imm.induce(log_q, log_w), imm.imm_risk(target, log_q, log_w)
    noising = imm.noising_risk(target, log_q, log_w)
    for b in range(batch):
        w = log_w[b].exp()
        assert induced[b].tolist() == pytest.approx(brute_induce(log_q[b], w), abs=1e-12)
        assert risk[b].item() == pytest.approx(brute_risk(target[b], log_q[b], w), abs=1e-12)
        one = torch.ones(1)
        each = [w[e].item() * brute_risk(target[b], log_q[b, e : e + 1], one) for e in range(k)]
        assert noising[b].item() == pytest.approx(sum(each), abs=1e-12)


@given(SHAPES)
@settings(max_examples=60, deadline=None)
def test_laws(shape):
    batch, k, labels, seed = shape
    log_q, log_w = random_log_q(batch, k, labels, seed=seed), random_log_q(batch, k, seed=seed + 1)
    target = random_probabilities(batch, labels, seed=seed + 2)
    induced = imm.induce(log_q, log_w)
    torch.testing.assert_close(induced.exp().sum(-1), torch.ones(batch, dtype=torch.float64))
    order = torch.randperm(k, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(imm.induce(log_q[:, order], log_w[:, order]), induced)
    # Jensen: noising bounds IMM from above; Gibbs: the target's entropy bounds IMM from below
    risk = imm.imm_risk(target, log_q, log_w)
    assert (risk <= imm.noising_risk(target, log_q, log_w) + 1e-12).all()
    assert (risk >= -(target * target.log()).sum(-1) - 1e-12).all()
    torch.testing.assert_close(
        imm.crosstalk(log_q, log_w).sum(-2), torch.ones(batch, labels, dtype=torch.float64)
    )


def test_default_weights_are_uniform_and_leading_dimensions_broadcast():
    log_q = random_log_q(2, 3, 4, 5)
    uniform = torch.full((4,), -math.log(4), dtype=torch.float64)
    torch.testing.assert_close(imm.induce(log_q), imm.induce(log_q, uniform))
    target = random_probabilities(5)
    assert imm.imm_risk(target, log_q).shape == (2, 3)
    torch.testing.assert_close(imm.imm_risk(target, log_q)[1, 2], imm.imm_risk(target, log_q[1, 2]))


def test_one_context_is_the_full_model_and_noising():
    log_q, target = random_log_q(3, 1, 4), random_probabilities(3, 4)
    torch.testing.assert_close(imm.induce(log_q), log_q.squeeze(1))
    torch.testing.assert_close(imm.imm_risk(target, log_q), imm.noising_risk(target, log_q))


def test_unlikely_labels_survive_in_log_space():
    log_q = torch.tensor([[-200.0, math.log1p(-math.exp(-200.0))]] * 2)
    assert imm.induce(log_q)[0].item() == pytest.approx(-200.0)
    assert log_q.exp().mean(0).log()[0].item() == -math.inf


def test_impossible_labels_and_contexts_left_out_cost_nothing():
    log_q = torch.tensor(
        [[0.0, -math.inf], [0.0, -math.inf]], dtype=torch.float64, requires_grad=True
    )
    target = torch.tensor([1.0, 0.0], dtype=torch.float64)
    for risk in (imm.imm_risk, imm.noising_risk):
        value = risk(target, log_q)
        assert value.item() == 0.0
        assert torch.isfinite(torch.autograd.grad(value, log_q)[0]).all()
    log_w = torch.tensor([0.0, -math.inf], dtype=torch.float64)
    mixed = torch.tensor([[0.5, 0.5], [1.0, 0.0]], dtype=torch.float64).log()
    half = torch.tensor([0.5, 0.5], dtype=torch.float64)
    assert imm.noising_risk(half, mixed, log_w).item() == pytest.approx(math.log(2))
    assert imm.imm_risk(half, mixed, log_w).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("weighted", [False, True])
def test_crosstalk_is_the_gradient_of_the_risk(weighted):
    log_q = random_log_q(3, 4, 5).requires_grad_()
    log_w = random_log_q(3, 4, seed=7) if weighted else None
    target = random_probabilities(3, 5)
    upstream = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    (gradient,) = torch.autograd.grad(imm.imm_risk(target, log_q, log_w) @ upstream, log_q)
    explicit = -target.unsqueeze(1) * imm.crosstalk(log_q, log_w) * upstream[:, None, None]
    torch.testing.assert_close(gradient, explicit, rtol=1e-12, atol=1e-12)
    assert not imm.crosstalk(log_q, log_w).requires_grad


def test_gradients_against_finite_differences():
    target = random_probabilities(2, 3)
    for risk in (imm.imm_risk, imm.noising_risk):
        # through log_softmax, so that perturbed inputs stay log-probabilities
        assert torch.autograd.gradcheck(
            lambda x, risk=risk: risk(target, x.log_softmax(-1)),
            random_log_q(2, 4, 3).requires_grad_(),
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_accumulated_in_float32(dtype):
    exact = random_log_q(50, 64, 7)
    half, target = exact.to(dtype), random_probabilities(50, 7)
    reference = imm.imm_risk(target, half.double())
    value = imm.imm_risk(target.to(dtype), half)
    assert value.dtype == torch.float32
    # what rounding the inputs cost, compared with what accumulating them cost
    rounding = (reference - imm.imm_risk(target, exact)).abs().max()
    assert (imm.imm_risk(target.float(), half).double() - reference).abs().max() < 0.01 * rounding


def test_float32_stays_close_to_float64():
    log_q, target = random_log_q(20, 8, 30), random_probabilities(20, 30)
    torch.testing.assert_close(
        imm.imm_risk(target.float(), log_q.float()).double(),
        imm.imm_risk(target, log_q),
        rtol=1e-5,
        atol=1e-5,
    )


def test_works_under_vmap_and_compile_like_transforms():
    log_q, target = random_log_q(3, 4, 5), random_probabilities(3, 5)
    torch.testing.assert_close(
        torch.func.vmap(imm.imm_risk)(target, log_q), imm.imm_risk(target, log_q)
    )
    jacobian = torch.func.jacrev(lambda x: imm.induce(x.log_softmax(-1)))(log_q)
    assert jacobian.shape == (3, 5, 3, 4, 5)


@given(st.integers(1, 12), st.integers(1, 5), st.integers(1, 3), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_segments_against_a_loop(n, size, labels, seed):
    values = random_log_q(n, labels + 1, seed=seed).requires_grad_()
    index = torch.randint(size, (n,), generator=torch.Generator().manual_seed(seed))
    result = segment_logsumexp(values, index, size)
    for s in range(size):
        expected = (
            values[index == s].logsumexp(0)
            if (index == s).any()
            else torch.full((labels + 1,), -math.inf)
        )
        torch.testing.assert_close(result[s], expected.double())
    present = index.unique()
    (gradient,) = torch.autograd.grad(result[present].sum(), values)
    (twin,) = torch.autograd.grad(
        sum(values[index == s].logsumexp(0).sum() for s in present), values
    )
    torch.testing.assert_close(gradient, twin)


def test_crosstalk_is_the_gradient_also_where_no_context_allows_a_label():
    log_q = torch.tensor([[0.0, 1.0], [0.0, 1.0]], dtype=torch.float64).log().requires_grad_()
    target = torch.tensor([0.0, 1.0], dtype=torch.float64)
    (gradient,) = torch.autograd.grad(imm.imm_risk(target, log_q), log_q)
    torch.testing.assert_close(gradient, -target * imm.crosstalk(log_q))
