"""Extended contexts: exact weights against enumeration, samples against the weights they are drawn
from.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from worlds import generator, random_probabilities

import imm_lib as imm

SHORT = torch.tensor([2, 0, 2, 2, 4, 0])
CONTEXTS = {
    "grouped": (imm.GroupedContexts(SHORT), torch.tensor([0, 2, 4, 2])),
    "kernel": (
        imm.KernelContexts(torch.rand(6, generator=generator(3)), 0.3),
        torch.tensor([0.1, 0.5, 0.5]),
    ),
    "kernel-2d": (
        imm.KernelContexts(torch.rand(6, 2, generator=generator(3))),
        torch.rand(3, 2, generator=generator()),
    ),
    "belief": (imm.BeliefContexts(random_probabilities(3, 4)), torch.tensor([2, 0, 2])),
}
CONTEXTS["belief with zeros"] = (
    imm.BeliefContexts(torch.tensor([[0.0, 0.25, 0.75, 0.0], [0.0, 0.0, 0.0, 1.0]])),
    torch.tensor([0, 1, 0]),
)


@pytest.mark.parametrize("name", CONTEXTS)
def test_weights_are_distributions_and_support_lists_them(name):
    contexts, short = CONTEXTS[name]
    log_w = contexts.log_weights(short)
    torch.testing.assert_close(log_w.exp().sum(1), torch.ones_like(log_w[:, 0]))
    row, extended, flat = contexts.support(short)
    dense = torch.full_like(log_w, -math.inf)
    dense[row, extended] = flat.to(log_w.dtype)
    torch.testing.assert_close(dense, log_w)
    assert len(row) == (log_w > -math.inf).sum()


@pytest.mark.parametrize("name", CONTEXTS)
def test_samples_follow_the_weights(name):
    contexts, short = CONTEXTS[name]
    drawn = contexts.sample(short, 4000, generator(11))
    assert drawn.shape == (len(short), 4000)
    for row, weights in zip(drawn, contexts.log_weights(short).double().exp(), strict=True):
        counts = torch.bincount(row, minlength=len(weights)).double()
        assert (counts[weights == 0] == 0).all()
        kept = weights > 0
        if kept.sum() > 1:
            expected = 4000 * weights[kept] / weights[kept].sum()
            assert stats.chisquare(counts[kept].numpy(), expected.numpy()).pvalue > 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_narrow_kernel_picks_the_nearest_point(dtype):
    values = torch.tensor([0.0, 1.0, 1.0, 3.0], dtype=dtype)
    contexts = imm.KernelContexts(values, torch.finfo(dtype).tiny)
    weights = contexts.log_weights(torch.tensor([0.9, 3.0], dtype=dtype)).exp()
    assert weights.tolist() == [[0, 0.5, 0.5, 0], [0, 0, 0, 1]]


def test_half_precision_values_are_compared_in_float32():
    values = torch.rand(6, generator=generator(3)).bfloat16()
    weights = imm.KernelContexts(values, 0.3).log_weights(values)
    assert torch.equal(weights, imm.KernelContexts(values.float(), 0.3).log_weights(values.float()))


@pytest.mark.parametrize("name", CONTEXTS)
def test_the_generator_decides(name):
    contexts, short = CONTEXTS[name]
    before = torch.get_rng_state()
    first = contexts.sample(short, 5, generator(2))
    assert torch.equal(first, contexts.sample(short, 5, generator(2)))
    assert not torch.equal(first, contexts.sample(short, 5, generator(3))) or "zeros" in name
    assert torch.equal(before, torch.get_rng_state())
    contexts.sample(short, 5)
    assert not torch.equal(before, torch.get_rng_state())


@given(st.lists(st.integers(0, 6), min_size=1, max_size=30))
@settings(max_examples=80, deadline=None)
def test_grouped_against_a_dictionary(short):
    extend = {s: [t for t, other in enumerate(short) if other == s] for s in set(short)}
    contexts = imm.GroupedContexts(torch.tensor(short), num_short=9)
    for s in range(9):
        assert contexts.extend(s).tolist() == extend.get(s, [])
        assert contexts.counts[s] == len(extend.get(s, []))
    drawn = contexts.sample(torch.tensor(short), 3, generator())
    assert all(t in extend[s] for s, row in zip(short, drawn.tolist(), strict=True) for t in row)


def test_kernel_is_the_papers():
    values = torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64)
    weights = (
        imm.KernelContexts(values, bandwidth=0.5)
        .log_weights(torch.tensor([0.3], dtype=torch.float64))
        .exp()[0]
    )
    raw = [math.exp(-2.0 * abs(v - 0.3)) for v in values.tolist()]
    assert weights.tolist() == pytest.approx([r / sum(raw) for r in raw])


def test_contexts_move_but_are_not_saved():
    contexts = CONTEXTS["grouped"][0]
    assert contexts.state_dict() == {}
    assert contexts.to("cpu").order.device.type == "cpu"
    assert imm.GroupedContexts(SHORT).to("meta").order.device.type == "meta"
