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
import imm_lib.precision

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


@pytest.mark.parametrize("width", [0.7, torch.tensor(0.7), torch.tensor([0.7]), None])
def test_mixed_contexts_are_equal_groups_times_a_kernel_for_each_column(width):
    values, group = [[0.0, 1.0], [2.0, -1.0], [0.5, 0.5], [3.0, 3.0]], [0, 1, 0, 1]
    asked = [[0.0, 0.2, 0.1], [1.0, 9.0, -8.0], [0.0, 400.0, 0.0]]
    widths = [0.7, 0.7] if width is not None else [0.5, 2.0]
    contexts = imm.MixedContexts(
        torch.tensor(values, dtype=torch.float64),
        torch.tensor(group),
        torch.tensor(widths) if width is None else width,
    )
    assert contexts.points == 4 and contexts.num_short is None
    expected = []
    for g, *at in asked:
        far = [
            math.fsum(abs(a - v) / w for a, v, w in zip(at, row, widths, strict=True))
            for row in values
        ]
        least = min(f for f, own in zip(far, group, strict=True) if own == g)
        each = [math.exp(least - f) if own == g else 0.0 for f, own in zip(far, group, strict=True)]
        expected.append([e / math.fsum(each) for e in each])
    asked = torch.tensor(asked, dtype=torch.float64)
    torch.testing.assert_close(
        contexts.log_weights(asked).exp(),
        torch.tensor(expected, dtype=torch.float64),
        rtol=1e-5,
        atol=1e-12,
    )
    row, extended, log_w = contexts.support(asked)
    assert [group[e] == asked[r, 0] for r, e in zip(row.tolist(), extended, strict=True)] == [
        True
    ] * 6
    assert torch.equal(log_w, contexts.log_weights(asked)[row, extended])


def test_what_mixed_contexts_refuse():
    values, group = torch.zeros(3, 2), torch.tensor([0, 0, 5])
    for bad, words in (
        (lambda: imm.MixedContexts(values[0], group), r"^values must be .*\(n, d\)"),
        (lambda: imm.MixedContexts(values[:0], group), r"^values must be .*\(n, d\)"),
        (lambda: imm.MixedContexts(values / 0, group), "^values must be finite"),
        (lambda: imm.MixedContexts(values, group[:2]), r"^group must be .*, as long as values"),
        (lambda: imm.MixedContexts(values, group, 0.0), "^bandwidth must be"),
        (lambda: imm.MixedContexts(values, group, torch.ones(3)), "^bandwidth must be a number or"),
        (lambda: imm.MixedContexts(values, group, torch.ones(1, 2)), "^bandwidth must be a number"),
        (
            lambda: imm.MixedContexts(values, group, torch.tensor([1.0, 0.0])),
            "^bandwidth must hold",
        ),
        (lambda: imm.MixedContexts(values, group, torch.tensor([1.0, 1e-46])), "^bandwidth must"),
        (
            lambda: imm.MixedContexts(values, group).log_weights(values),
            r"^short must be \(B, 3\)",
        ),
        (
            lambda: imm.MixedContexts(values, group).log_weights(values[:0]),
            "^short must be non-empty",
        ),
        (
            lambda: imm.MixedContexts(values, group).log_weights(torch.tensor([[4.0, 0, 0]])),
            "^short has a group that no data point has: 4$",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            bad()


def test_held_tensors_keep_their_precision():
    module = imm.precision.KeepsPrecision()
    assert list(module.held()) == []
    first, second = torch.tensor([0.1]), torch.tensor([3])
    module.hold(first=first)
    module.hold(second=second)
    assert [x is y for x, y in zip(module.held(), (first, second), strict=True)] == [True, True]
    module.register_buffer("table", torch.tensor([0.1]))
    outer = torch.nn.Sequential(module, torch.nn.Linear(1, 1))
    for half in (torch.bfloat16, torch.float16):
        outer.to(half)
        assert [module.first.dtype, module.table.dtype, module.second.dtype] == [
            *(torch.float32, torch.float32),
            torch.int64,
        ]
        assert outer[1].weight.dtype == half
    outer.double()
    assert module.first.dtype == module.table.dtype == torch.float64
    assert module.first.item() == torch.tensor(0.1).double().item()
    assert outer.state_dict().keys() == {"0.table", "1.weight", "1.bias"}
    stored = imm.precision.KeepsPrecision()
    stored.hold(small=torch.tensor([0.5], dtype=torch.bfloat16))
    assert stored.float().small.dtype == torch.float32
