"""Weights of data points: one of weight 2 counts as two, one of weight 0 as none; and evaluation of
a moving average on held-out text.
"""

import math

import pytest
import torch
from worlds import PairModel, assert_same, generator, gradients, random_log_q, random_probabilities

import imm_lib as imm

S, N, Y = 4, 7, 3
SHORT = torch.tensor([0, 2, 0, 1, 2, 0])
EXTENDED = torch.tensor([3, 0, 6, 1, 2, 5])
COUNTS = torch.tensor([2.0, 1.0, 0.0, 3.0, 1.0, 1.0], dtype=torch.float64)
REPEATED = torch.arange(6).repeat_interleave(COUNTS.long())
TARGET = random_probabilities(S, Y)
CONTEXTS = imm.BeliefContexts(random_probabilities(S, N))


def estimators(kind, divergence="cross-entropy"):
    """(net, points, weight) -> loss of the data points, and the estimator."""
    if kind in ("reverse-KD", "average", "serialized"):
        term = {
            "reverse-KD": lambda: imm.ReverseKD(TARGET),
            "average": lambda: imm.MovingAverageIMM(TARGET, S, Y, 0.3, divergence=divergence),
            "serialized": lambda: imm.SerializedIMM(TARGET, S, Y, divergence),
        }[kind]().double()
        first = random_log_q(len(SHORT), Y, seed=5)
        if kind == "average":
            term(first, SHORT)
        if kind == "serialized":
            term.refresh([(first, SHORT)])

        def loss(net, points, weight):
            more = (first[points],) if kind == "serialized" else ()
            log_q = net(SHORT[points], EXTENDED[points])
            return term(log_q, SHORT[points], *more, weight=weight)

        return loss, term
    term = {
        "exact": lambda: imm.ExactIMM(TARGET, CONTEXTS, divergence),
        "sampled": lambda: imm.SampledIMM(
            TARGET, CONTEXTS, 4, generator=generator(1), divergence=divergence
        ),
        "sequential": lambda: imm.SampledIMM(
            TARGET, CONTEXTS, 4, True, generator(1), divergence=divergence
        ),
        "noising": lambda: imm.SampledNoising(
            TARGET, CONTEXTS, 4, generator(1), divergence=divergence
        ),
    }[kind]()
    return lambda net, points, weight: term(net, SHORT[points], weight=weight), term


KINDS = ("exact", "sampled", "sequential", "noising", "reverse-KD", "average", "serialized")
ALL = torch.arange(6)


@pytest.mark.parametrize("divergence", ["cross-entropy", "Jensen-Shannon"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_counts_how_often(kind, divergence):
    net, found = PairModel(S, N, Y), []
    for points, weight in ((ALL, COUNTS), (REPEATED, None), (ALL, 7 * COUNTS)):
        loss, term = estimators(kind, divergence)
        value = loss(net, points, weight)
        table = [term.table[:3], term.visited.double()] if hasattr(term, "table") else []
        found.append([*gradients(value, net), term.risk, *table])
        if kind not in ("average", "serialized"):
            found[-1].append(value)
    assert_same(found[0], found[1])
    assert_same(found[0], found[2])


@pytest.mark.parametrize("kind", KINDS)
def test_equal_weights_change_nothing(kind):
    net, found = PairModel(S, N, Y), []
    for weight in (None, torch.full((6,), 0.25), torch.ones(6).bfloat16()):
        loss, term = estimators(kind)
        found.append([*gradients(loss(net, ALL, weight), net), term.risk])
    assert_same(found[0], found[1], 1e-7)
    assert_same(found[0], found[2], 1e-7)


def test_a_data_point_of_weight_0_leaves_no_trace_in_the_table():
    weight = torch.tensor([1.0, 1.0, 1.0, 0.0, 1.0, 1.0])  # the only one of short context 1
    log_q = random_log_q(6, Y).requires_grad_()
    for max_ratio in (math.inf, 1.5):
        term = imm.MovingAverageIMM(TARGET, S, Y, 0.3, max_ratio).double()
        term(log_q, SHORT, weight).backward()
        assert term.visited.tolist() == [True, False, True, False]
        assert term.table[1].isnan().all() and term.risk.isfinite()
        assert log_q.grad.isfinite().all() and (log_q.grad[3] == 0).all()
        before = term(log_q.detach(), SHORT) and term.table.clone()
        term(random_log_q(6, Y, seed=3), SHORT, weight)
        assert torch.equal(term.table[1], before[1]) and not torch.equal(term.table[0], before[0])


@pytest.mark.parametrize("divergence", ["reverse KL", "alpha 0.5", "cross-entropy"])
def test_an_infinite_risk_of_weight_0_costs_nothing(divergence):
    target = torch.tensor([[1.0, 0.0], [0.5, 0.5]], dtype=torch.float64)
    log_q = torch.tensor([[0.0, 1.0], [0.5, 0.5]], dtype=torch.float64).log()
    contexts = imm.BeliefContexts(torch.eye(2, dtype=torch.float64))
    weight = torch.tensor([0.0, 1.0])
    for build in (imm.ExactIMM, lambda *a, **k: imm.SampledIMM(*a, k=2, **k)):
        term = build(target, contexts, divergence=divergence)
        rows = log_q.clone().requires_grad_()
        value = term(lambda s, e, rows=rows: rows[e], torch.tensor([0, 1]), weight)
        assert value.isfinite() and term.risk.isfinite()
        assert torch.autograd.grad(value, rows)[0].isfinite().all()


def test_the_ratio_is_limited_as_without_weights():
    net, found = PairModel(S, N, Y), []
    for points, weight in ((ALL, COUNTS), (REPEATED, None)):
        term = imm.MovingAverageIMM(TARGET, S, Y, 0.3, 1.1).double()
        term(random_log_q(6, Y, seed=5), SHORT)
        log_q = net(SHORT[points], EXTENDED[points])
        found.append(gradients(term(log_q, SHORT[points], weight), net))
    assert_same(*found)


def test_parts_of_a_batch_are_the_batch(monkeypatch):
    net, found = PairModel(S, N, Y), []
    for room in (2**20, 1):
        monkeypatch.setattr(imm.surrogates, "CACHE", room)
        loss, term = estimators("average")
        found.append([*gradients(loss(net, ALL, COUNTS), net), term.risk, term.table[:3]])
    assert_same(*found)


@pytest.mark.parametrize(
    ("weight", "error", "words"),
    [
        (torch.ones(5), ValueError, r"weight must be \(6,\), one number per data point"),
        (torch.ones(6, 1), ValueError, "one number per data point"),
        (torch.zeros(6), ValueError, "not all 0"),
        (-torch.ones(6), ValueError, "not negative"),
        (torch.full((6,), math.nan), ValueError, "finite"),
        (torch.full((6,), math.inf), ValueError, "finite"),
        (torch.ones(6).long(), TypeError, "weight must be a floating-point"),
        ([1.0] * 6, TypeError, "weight must be a torch.Tensor"),
        (torch.ones(6, device="meta"), ValueError, "weight is on meta"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_bad_weights(kind, weight, error, words):
    loss, term = estimators(kind)
    before = term.table.clone() if kind == "average" else None
    with pytest.raises(error, match=words):
        loss(PairModel(S, N, Y), ALL, weight)
    if before is not None:
        torch.testing.assert_close(term.table, before, rtol=0, atol=0, equal_nan=True)


# a moving average on held-out text


def test_held_out_text_may_have_contexts_of_its_own():
    """The table is one of training: a new short context takes the mean of the batch instead."""
    term = imm.MovingAverageIMM(TARGET, S, Y, 0.3).double()
    term(random_log_q(6, Y, seed=5), SHORT)
    before, visited = term.table.clone(), term.visited.clone()
    term.eval()
    held_out = torch.tensor([3, 0, 3, 3])
    log_q = random_log_q(4, Y, seed=6).requires_grad_()
    term(log_q, held_out).backward()
    torch.testing.assert_close(term.table, before, equal_nan=True)
    assert torch.equal(term.visited, visited) and not visited[3]
    rows = torch.stack([log_q.detach()[[0, 2, 3]].exp().mean(0).log(), before[0]])
    expected = -(3 * (TARGET[3] * rows[0]).sum() + (TARGET[0] * rows[1]).sum()) / 4
    torch.testing.assert_close(term.risk, expected)
    q_bar = rows[torch.tensor([0, 1, 0, 0])].exp()
    gradient = -TARGET[held_out] * log_q.detach().exp() / q_bar / 4
    torch.testing.assert_close(log_q.grad, gradient)
    # the order of batches, and what came before, change nothing
    again = term.risk
    term(random_log_q(2, Y), torch.tensor([3, 3]))
    term(log_q.detach(), held_out)
    torch.testing.assert_close(term.risk, again, rtol=0, atol=0)


def test_all_of_the_text_at_once_is_the_exact_risk():
    """Of a text that training has not met at all, the rows are its own induced model."""
    term = imm.MovingAverageIMM(TARGET, S, Y).double()
    term(random_log_q(1, Y), torch.tensor([0]))
    term.eval()
    short, log_q = torch.tensor([1, 2, 2, 3, 1]), random_log_q(5, Y, seed=2)
    term(log_q, short)
    exact = imm.ExactIMM(TARGET, imm.GroupedContexts(short, S))
    exact(lambda s, e: log_q[e], short)
    torch.testing.assert_close(term.risk, exact.risk)
    term(log_q, short, torch.tensor([1.0, 1.0, 0.0, 0.0, 2.0]))
    assert term.risk.isfinite()
    assert not term.visited[1:].any()


def test_before_any_visit_there_is_nothing_to_evaluate():
    term = imm.MovingAverageIMM(TARGET, S, Y).double().eval()
    with pytest.raises(ValueError, match="never visited in train mode"):
        term(random_log_q(2, Y), torch.tensor([1, 2]))


@pytest.mark.parametrize("divergence", ["cross-entropy", "Jensen-Shannon", "reverse KL"])
def test_what_counts_for_nothing_needs_no_refresh(divergence):
    """Padding, of a short context that the data do not have."""
    some = SHORT != 1
    term = imm.SerializedIMM(TARGET, S, Y, divergence).double()
    frozen, log_q = random_log_q(6, Y), random_log_q(6, Y, seed=3).requires_grad_()
    term.refresh([(frozen[some], SHORT[some])])
    term(log_q[some], SHORT[some], frozen[some]).backward()
    expected, risk = log_q.grad, term.risk
    log_q.grad = None
    term(log_q, SHORT, frozen, weight=some.double()).backward()
    assert_same([log_q.grad, term.risk], [expected, risk])
    with pytest.raises(ValueError, match=r"never visited by a refresh.*: 1"):
        term(log_q, SHORT, frozen, weight=torch.ones(6))
