"""Groups of equal short contexts, and that a training step's shapes do not depend on the data."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import random_log_q, random_probabilities

import imm_lib as imm
from imm_lib import checks, segments

S, Y, N = 6, 5, 40
TEXT = torch.randint(S, (N,), generator=torch.Generator().manual_seed(0))
TARGET = random_probabilities(S, Y)
CONTEXTS = imm.GroupedContexts(TEXT, S)
LOG_Q = random_log_q(N, Y)
WORDS = imm.KneserNeyBigram.fit(TEXT, S)


@pytest.fixture
def unseen(monkeypatch):
    """As on a GPU, no value may be looked at."""
    monkeypatch.setattr(checks, "visible", lambda x: False)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=30))
@settings(max_examples=60, deadline=None)
def test_groups_of_known_shape_are_the_distinct_ids(values):
    short = torch.tensor(values)
    compact = segments.groups(short)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checks, "visible", lambda x: False)
        fixed = segments.groups(short)
        written, rows = torch.full((10, 2), -1.0), torch.rand(len(short), 2)
        fixed.write(written, rows)
    size = len(compact.short)
    assert len(fixed.short) == len(short)
    assert all(torch.equal(a[:size], b) for a, b in zip(fixed[::2], compact[::2], strict=True))
    assert torch.equal(fixed.inverse, compact.inverse)
    assert (fixed.short[size:] == compact.short[-1]).all() and not fixed.members[size:].any()
    twin = torch.full((10, 2), -1.0)
    twin[compact.short] = rows[:size]
    assert torch.equal(written, twin)


@given(st.integers(0, 10**6), st.sampled_from([torch.float64, torch.float32]))
@settings(max_examples=40, deadline=None)
def test_mix_is_a_step_in_probabilities(seed, dtype):
    draw = torch.Generator().manual_seed(seed)
    inverse = torch.randint(3, (7,), generator=draw)
    old, log_q = random_log_q(3, Y, seed=seed), random_log_q(7, Y, seed=seed + 1)
    kept, added = torch.rand(2, 3, 1, generator=draw, dtype=torch.float64)
    total = kept * old.exp() + added * torch.stack(
        [log_q[inverse == g].exp().sum(0) for g in range(3)]
    )
    arguments = old.clone(), log_q, inverse, kept, added
    new, ratio = segments.mix(*(a if a.dtype == torch.long else a.to(dtype) for a in arguments))
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(new.exp().double(), total, rtol=tolerance, atol=tolerance)
    assert (ratio - log_q.exp() / total[inverse]).abs().max() <= tolerance * ratio.max()


STEPS = {
    "moving average": imm.MovingAverageIMM(TARGET, S, Y, 0.3, 2.0).double(),
    "moving average, reverse KL": imm.MovingAverageIMM(TARGET, S, Y, divergence="reverse KL"),
    "moving average, words": imm.MovingAverageIMM(WORDS, S, S),
    "reverse-KD": imm.ReverseKD(TARGET),
    "reverse-KD, words": imm.ReverseKD(WORDS),
    "sampled": imm.SampledIMM(TARGET, CONTEXTS, 3, generator=torch.Generator()),
    "sampled, known weights": imm.SampledIMM(
        TARGET, imm.BeliefContexts(random_probabilities(S, N))
    ),
    "noising": imm.SampledNoising(TARGET, CONTEXTS, 3),
}


def call(term, log_q, short):
    """A step's loss; sampled estimators look up the extended contexts that they draw."""
    sampled = isinstance(term, imm.SampledIMM | imm.SampledNoising)
    return term(lambda _, extended: log_q[extended], short) if sampled else term(log_q, short)


def labels(name):
    return S if name.endswith("words") else Y


@pytest.mark.parametrize("name", STEPS)
def test_a_step_needs_no_value(name):
    """On the meta device there are none: what asks for one, or for a shape that depends on one,
    fails there, and so does a tensor left on another device. On a GPU it would make the step wait.
    """
    term = copy.deepcopy(STEPS[name]).to("meta")
    logits = torch.empty(N, labels(name), device="meta", requires_grad=True)
    call(term, logits.log_softmax(1), torch.empty(N, dtype=torch.long, device="meta")).backward()
    assert logits.grad.shape == logits.shape


@pytest.mark.parametrize(
    "ask", [torch.unique, torch.nonzero, torch.Tensor.item, torch.bincount, bool]
)
def test_the_meta_device_refuses_to_tell(ask):
    with pytest.raises((NotImplementedError, RuntimeError)):
        ask(torch.empty((), dtype=torch.long, device="meta").expand(1 + (ask is torch.unique)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
# the compiler takes neither a generator nor a gradient inside of a graph
@pytest.mark.parametrize("name", sorted(STEPS.keys() - {"sampled", "moving average, reverse KL"}))
def test_a_step_is_one_graph(name):
    torch._dynamo.reset()
    term, twin = copy.deepcopy(STEPS[name]), copy.deepcopy(STEPS[name])
    compiled = torch.compile(call, fullgraph=True, backend="eager")
    found = []
    for run, module in ((call, term), (compiled, twin)):
        logits = random_log_q(N, labels(name), dtype=torch.float32).requires_grad_()
        value = run(module, logits.log_softmax(1), TEXT)
        found.append((value, torch.autograd.grad(value, logits)[0]))
    if "sampled" in name or name == "noising":  # other draws
        assert all(torch.isfinite(x).all() for x in found[1])
    else:
        torch.testing.assert_close(*found)


@pytest.mark.parametrize("divergence", ["cross-entropy", "reverse KL"])
def test_known_shapes_change_nothing(monkeypatch, divergence):
    found = []
    for look in (True, False):
        term = imm.MovingAverageIMM(TARGET, S, Y, 0.3, 2.0, divergence).double()
        if not look:
            monkeypatch.setattr(checks, "visible", lambda x: False)
        for seed in range(4):
            log_q = random_log_q(9, Y, seed=seed).requires_grad_()
            loss = term(log_q, TEXT[9 * seed : 9 * seed + 9])
        (gradient,) = torch.autograd.grad(loss, log_q)
        found.append((loss, gradient, term.risk, term.table, term.visited))
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12, equal_nan=True)


def test_bigrams_of_known_shape_are_the_same_rows(unseen, monkeypatch):
    fixed = WORDS(TEXT)
    monkeypatch.undo()
    assert torch.equal(fixed, WORDS(TEXT))


def test_what_cannot_be_refused_does_not_stay(unseen):
    term = imm.MovingAverageIMM(TARGET, S, Y).double()
    term(LOG_Q[:3], torch.tensor([0, 1, 1]))
    before = term.table.clone()
    bad = LOG_Q[:3].clone()
    bad[0, 2] = math.nan
    assert term(bad, torch.tensor([0, 1, 2])).isnan()
    assert torch.equal(term.table[0], before[0]) and not torch.equal(term.table[1], before[1])
    term(bad, torch.tensor([3, 1, 2]))
    assert term.visited.tolist() == [True, True, True, False, False, False]
    assert not term.table[term.visited].isnan().any()


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_without_a_look_the_draws_are_the_same(monkeypatch, sequential, weighted):
    """Step after step, batches with more and with fewer short contexts."""
    found = []
    for look in (True, False):
        source = torch.Generator().manual_seed(3)
        term = imm.SampledIMM(TARGET, CONTEXTS, 3, sequential, source)
        weight = torch.tensor([0.0, 2.0, 0.5, 1.0]).repeat(8) if weighted else None
        for size in (8, 3, 1, 8):
            logits = LOG_Q.clone().requires_grad_()
            with monkeypatch.context() as patch:
                if not look:
                    patch.setattr(checks, "visible", lambda x: False)
                own = None if weight is None else weight[1 : size + 1]
                query = lambda short, extended: logits.log_softmax(1)[extended]  # noqa: B023, E731
                value = term(query, TEXT[:size], own)
            value.backward()
            found.append((look, value.detach(), logits.grad, source.get_state()))
    half = len(found) // 2
    for (_, *near), (_, *far) in zip(found[:half], found[half:], strict=True):
        torch.testing.assert_close(near, far)


@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_groups_of_rows_of_known_shape_are_the_distinct_rows(seed, size, width):
    draw = torch.Generator().manual_seed(seed)
    short = torch.randint(-1, 2, (size, width), generator=draw) / 2
    compact = segments.groups(short)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checks, "visible", lambda x: False)
        fixed = segments.groups(short)
    some = len(compact.short)
    assert fixed.short.shape == short.shape
    assert torch.equal(fixed.short[:some], compact.short)
    assert (fixed.short[some:] == compact.short[-1]).all() and not fixed.members[some:].any()
    assert torch.equal(fixed.members[:some], compact.members)
    assert torch.equal(fixed.inverse, compact.inverse)
