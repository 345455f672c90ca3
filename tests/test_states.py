"""States that the surroundings of a training run change: modes of teachers, precisions, stored
states, threads.
"""

import copy
import math
import pickle
import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import imm_lib as imm
from imm_lib.means import ExactMean, MovingAverageMean, SampledMean, induced_mean

HALF = [torch.bfloat16, torch.float16]
SHORT = torch.tensor([0, 1, 0, 1, 1])
ROWS = torch.tensor([[0.7, 0.3], [0.4, 0.6]])
LOG_Q = torch.tensor([[0.9, 0.1], [0.5, 0.5], [0.3, 0.7], [0.2, 0.8], [0.6, 0.4]]).log()
GROUPED = imm.GroupedContexts(SHORT)


# a teacher's mode


class Teacher(nn.Module):
    """With dropout, whose answers differ from call to call in train mode."""

    def __init__(self):
        super().__init__()
        self.drop, self.rows = nn.Dropout(0.5), nn.Parameter(ROWS.log())

    def forward(self, short):
        return self.drop(self.rows[short]).softmax(-1)


class Regressor(Teacher):
    def forward(self, short):
        return self.drop(self.rows[short])


TERMS = {
    "exact": lambda t: lambda: imm.ExactIMM(t, GROUPED)(lambda s, e: LOG_Q[e], SHORT),
    "sampled": lambda t: (
        lambda: imm.SampledNoising(t, imm.BeliefContexts(torch.eye(2)))(
            lambda s, e: LOG_Q[e], SHORT
        )
    ),
    "distilled": lambda t: lambda: imm.ReverseKD(t)(LOG_Q, SHORT),
    "fused": lambda t: (
        lambda: imm.FusedIMM(t, 2, 2)(
            LOG_Q, torch.eye(2), None, torch.ones(5, dtype=torch.long), SHORT
        )
    ),
    "averaged": lambda t: lambda: imm.MovingAverageIMM(t, 2, 2)(LOG_Q, SHORT),
    "interpolated": lambda t: lambda: imm.Interpolation(t, 0.5)(LOG_Q, SHORT).sum(),
}


@pytest.mark.parametrize("name", TERMS)
def test_a_teacher_has_no_dropout_whatever_its_parent_does(name):
    teacher = Teacher()
    call = TERMS[name](teacher)
    nn.ModuleList([teacher]).train()
    found = {call().item() for _ in range(6)}
    assert len(found) == 1 and found == {TERMS[name](teacher.eval())().item()}


def test_a_teacher_keeps_its_own_mode():
    teacher = Teacher()
    teacher.drop.eval()
    term = imm.ReverseKD(teacher)
    assert teacher.training
    term(LOG_Q, SHORT)
    assert teacher.training and not teacher.drop.training
    with pytest.raises(ValueError, match="log_q must be"):
        term(LOG_Q, SHORT[:2])
    assert teacher.training and not teacher.drop.training


def test_a_regressor_has_no_dropout_either():
    teacher = Regressor().train()
    exact = ExactMean(teacher, GROUPED)
    found = {exact(lambda s, e: LOG_Q[e], SHORT).item() for _ in range(6)}
    assert len(found) == 1 and teacher.training


# precision


@pytest.mark.parametrize("dtype", HALF)
def test_a_table_of_means_does_not_stall(dtype):
    average = MovingAverageMean(torch.zeros(1, 1), 1, momentum=0.001).to(dtype)
    short = torch.zeros(1, dtype=torch.long)
    average(torch.zeros(1, 1), short)
    for _ in range(1000):
        average(torch.ones(1, 1), short)
    assert average.table.item() == pytest.approx(1 - 0.999**1000, rel=1e-4)


@pytest.mark.parametrize("dtype", HALF)
def test_means_of_half_precision_are_accumulated_in_float32(dtype):
    short = torch.zeros(3000, dtype=torch.long)
    values = torch.full((3000, 1), 300.0, dtype=dtype, requires_grad=True)
    contexts, target = imm.GroupedContexts(short), torch.zeros(1, 1)
    query = lambda s, e: values[e]  # noqa: E731
    average = MovingAverageMean(target, 1)
    average(values, short).backward()
    risks = [ExactMean(target, contexts)(query, short[:2]), average.risk]
    risks.append(SampledMean(target, contexts, 1000)(query, short[:2]))
    for risk in risks:  # 45,000: a square that float16 does not hold
        assert risk.dtype == torch.float32 and risk.item() == pytest.approx(45_000, rel=1e-3)
    assert values.grad.float().sum().item() == pytest.approx(300, rel=1e-2)
    assert induced_mean(values).item() == pytest.approx(300, rel=1e-3)


@pytest.mark.parametrize("dtype", HALF)
def test_informations_of_half_precision_are_accumulated_in_float32(dtype):
    def found(dtype):
        theta = torch.zeros(2, dtype=dtype, requires_grad=True)
        short, points = torch.zeros(1000, dtype=torch.long), torch.arange(1000)

        def query(short, extended):
            logits = torch.stack([theta.new_zeros(len(extended)), theta[extended % 2]], 1)
            return logits.log_softmax(1)

        contexts = imm.GroupedContexts(short)
        return imm.worth.informations(query, [theta], contexts, short, points)

    for low, right in zip(found(dtype), found(torch.float64), strict=True):
        torch.testing.assert_close(low, right, rtol=2e-2, atol=2e-3)


@pytest.mark.parametrize("dtype, largest", [(torch.bfloat16, 256), (torch.float16, 2048)])
def test_groups_that_a_dtype_rounds_into_others_are_refused(dtype, largest):
    for more in (0, 1):
        size = largest + more + 1
        contexts = imm.MixedContexts(torch.zeros(size, 1), torch.arange(size))
        short = torch.tensor([[largest - 1.0, 0.0]])
        assert contexts.log_weights(short).exp()[0, largest - 1] == 1
        if more:
            with pytest.raises(ValueError, match=f"whole numbers up to {largest + 1}, got"):
                contexts.log_weights(short.to(dtype))
        else:
            assert contexts.log_weights(short.to(dtype)).exp()[0, largest - 1] == 1
    contexts = imm.MixedContexts(torch.zeros(2, 1), torch.tensor([0, 2**24 + 1]))
    with pytest.raises(ValueError, match=r"got torch\.float32, which does up to 16777216"):
        contexts.log_weights(torch.tensor([[2.0**24, 0.0]]))
    wide = torch.tensor([[2.0**24 + 1, 0.0]], dtype=torch.float64)
    assert contexts.log_weights(wide).exp().tolist() == [[0.0, 1.0]]


def test_logits_that_autocast_cannot_hold_are_refused():
    fused, weight = imm.FusedIMM(ROWS, 2, 2), torch.tensor([[1000.0, 0.0], [500.0, 10.0]])
    labels = torch.ones(5, dtype=torch.long)
    with torch.autocast("cpu", dtype=torch.float16):
        with pytest.raises(ValueError, match=r"products that fit torch\.float16"):
            fused(torch.full((5, 2), 300.0), weight, None, labels, SHORT)
        assert not fused.visited.any()
        # 600 products of 200 would not fit; that most of them are nearly 0 is seen
        hidden, weight = torch.zeros(5, 600), torch.zeros(2, 600)
        hidden[:, 0], weight[:, 0] = 20.0, 10.0
        assert fused(hidden, weight, None, labels, SHORT).isfinite()


# stored states


def tables():
    """Estimators with a table, each of whose rows has been visited."""
    average, means = imm.MovingAverageIMM(ROWS, 2, 2), MovingAverageMean(ROWS, 2, 2)
    serialized, fused = imm.SerializedIMM(ROWS, 2, 2), imm.FusedIMM(ROWS, 2, 2)
    average(LOG_Q, SHORT), means(LOG_Q, SHORT), serialized.refresh([(LOG_Q, SHORT)])
    fused(LOG_Q, torch.eye(2), None, torch.ones(5, dtype=torch.long), SHORT)
    return [average, means, serialized, fused]


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("name", ["table", "visited"])
def test_half_a_state_is_refused(place, name):
    term = tables()[place]
    before = {key: value.clone() for key, value in term.state_dict().items()}
    for strict in (True, False):
        with pytest.raises(ValueError, match=f"table and visited together, got {name} alone"):
            term.load_state_dict({name: before[name]}, strict=strict)
    torch.testing.assert_close(dict(term.state_dict()), before)
    term.load_state_dict({}, strict=False)  # nothing of it: nothing changes
    torch.testing.assert_close(dict(term.state_dict()), before)


@pytest.mark.parametrize("place", range(4))
def test_a_state_in_half_precision_makes_no_table_in_it(place):
    term = tables()[place]
    state = {key: value.bfloat16() for key, value in term.state_dict().items() if key == "table"}
    state["visited"] = term.visited
    term.load_state_dict(state, assign=True)
    assert term.table.dtype == torch.float32
    assert state["table"].dtype == torch.bfloat16  # the caller's own


@pytest.mark.parametrize("labels", ["all", "seen"])
def test_a_state_may_be_assigned_in_double_precision(labels):
    bigram = imm.KneserNeyBigram.fit(SHORT, 2)
    given = LOG_Q, torch.eye(2), None, torch.ones(5, dtype=torch.long), SHORT
    term = imm.FusedIMM(bigram, 2, 2, labels=labels)
    term(*given)
    state = copy.deepcopy(term).double().state_dict()
    other = imm.FusedIMM(bigram, 2, 2, labels=labels)
    other.load_state_dict(state, assign=True)
    assert other.table.dtype == torch.float64
    torch.testing.assert_close(other(*given).float(), term(*given))


def test_a_row_of_means_without_a_visit_is_no_number():
    average = MovingAverageMean(torch.zeros(2, 1), 2)
    average(torch.tensor([[4.0]]), torch.tensor([1]))
    assert average.table[0].isnan() and average.table[1] == 4.0
    with pytest.raises(ValueError, match=r"state_dict\['table'\] must be \(2, 1\)"):
        average.load_state_dict(MovingAverageMean(torch.zeros(3, 1), 3).state_dict())


def test_a_table_of_means_moves_once_under_a_checkpoint():
    def run(wrapped):
        torch.manual_seed(0)
        average, net = (
            MovingAverageMean(torch.zeros(2, 1), 2, momentum=0.5).double(),
            nn.Linear(3, 1),
        )
        net, inputs = net.double(), torch.randn(5, 3, dtype=torch.float64)
        step = lambda x: average(net(x), SHORT)  # noqa: E731
        step(inputs + 1)
        loss = checkpoint(step, inputs, use_reentrant=False) if wrapped else step(inputs)
        net.zero_grad()
        loss.backward()
        return average.table.clone(), net.weight.grad

    torch.testing.assert_close(run(True), run(False))


@pytest.mark.parametrize("build", [imm.SampledIMM, imm.SampledNoising, SampledMean])
def test_a_checkpoint_draws_the_same_contexts_again(build):
    def run(wrapped):
        torch.manual_seed(0)
        net, inputs = nn.Linear(3, 2).double(), torch.randn(5, 3, dtype=torch.double)
        term = build(ROWS.double(), GROUPED, k=2, generator=torch.Generator().manual_seed(0))
        step = lambda x: term(lambda s, e: net(x[e]).log_softmax(-1), SHORT)  # noqa: E731
        for _ in range(2):
            loss = checkpoint(step, inputs, use_reentrant=False) if wrapped else step(inputs)
            loss.backward()
        return loss.detach(), net.weight.grad, term.state_dict()["generator"]

    torch.testing.assert_close(run(True), run(False))


def test_a_surrogate_of_means_has_no_second_derivative():
    values = torch.ones(5, 2, requires_grad=True)
    surrogate = MovingAverageMean(ROWS, 2, 2)(values, SHORT)
    with pytest.raises(RuntimeError, match="second derivatives"):
        torch.autograd.grad(surrogate, values, create_graph=True)
    with pytest.raises(ValueError, match=r"eval mode under torch\.func"):
        torch.func.grad(lambda v: MovingAverageMean(ROWS, 2, 2)(v, SHORT))(values)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", ["exact", "distilled", "averaged", "means"])
def test_the_risk_outlives_a_transform(name):
    """Of vmap it is that of every model."""
    average, means = imm.MovingAverageIMM(ROWS, 2, 2), MovingAverageMean(ROWS, 2, 2)
    average(LOG_Q, SHORT), means(LOG_Q, SHORT), average.eval(), means.eval()
    exact, distilled = imm.ExactIMM(ROWS, GROUPED), imm.ReverseKD(ROWS)
    term, call = {
        "exact": (exact, lambda log_q: exact(lambda s, e: log_q[e], SHORT)),
        "distilled": (distilled, lambda log_q: distilled(log_q, SHORT)),
        "averaged": (average, lambda log_q: average(log_q, SHORT)),
        "means": (means, lambda log_q: means(log_q, SHORT)),
    }[name]
    call(LOG_Q)
    expected = term.risk
    torch.func.grad(call)(LOG_Q)
    assert term.risk.item() == expected.item() == copy.deepcopy(term).risk.item()
    torch.vmap(call)(torch.stack([LOG_Q, LOG_Q]))
    kept = pickle.loads(pickle.dumps(term)).risk
    torch.testing.assert_close(kept, expected.expand_as(kept))


# threads, and numbers at their ends


def test_threads_can_share_a_fused_layer():
    draw = torch.Generator().manual_seed(0)
    labels, size = 2000, 300
    target = torch.rand(5, labels, generator=draw).softmax(-1)
    fused, weight = imm.FusedIMM(target, 5, labels), torch.randn(labels, 8, generator=draw)
    batches = [torch.randn(size, 8, generator=draw) for _ in range(4)]
    short = torch.randint(5, (size,), generator=draw)
    label = torch.randint(labels, (size,), generator=draw)
    fused(batches[0], weight, None, label, short)
    fused.eval()
    expected = [fused(hidden, weight, None, label, short).item() for hidden in batches]
    found = [[] for _ in batches]

    def work(place):
        for _ in range(5):
            found[place].append(fused(batches[place], weight, None, label, short).item())

    threads = [threading.Thread(target=work, args=(place,)) for place in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[value] * 5 for value in expected]


def test_a_label_that_is_asked_for_and_ruled_out_costs_infinitely_much():
    rows, log_q = torch.tensor([[0.5, 0.5, 0.0]]), torch.tensor([[1.0, 0.0, 0.0]]).log()
    short = torch.tensor([0])
    average = imm.MovingAverageIMM(rows, 1, 3)
    average(log_q, short)
    distilled, exact = imm.ReverseKD(rows), imm.ExactIMM(rows, imm.GroupedContexts(short))
    assert exact(lambda s, e: log_q[e], short) == math.inf
    assert distilled(log_q, short) == math.inf and average.risk == math.inf


def test_a_weight_of_0_is_none_whatever_the_gradient():
    w = torch.zeros(2, requires_grad=True)
    w.grad = torch.ones(2)
    _, norm = imm.clipped_backward((2 * w).sum(), w.sqrt().sum(), [w], lam=0.0, max_norm=10.0)
    assert norm == math.inf and w.grad.tolist() == [3.0, 3.0]


def test_an_ignored_label_may_be_of_numpy():
    fused, labels = imm.FusedIMM(ROWS, 2, 2), torch.tensor([0, 1, -1, 1, -1])
    given = LOG_Q, torch.eye(2), None, labels, SHORT
    value = fused(*given, ignore_index=np.int64(-1))
    fused.reset_parameters()
    assert value == fused(*given, ignore_index=-1)


# the second run of a sequential term


def sequential(query, **options):
    target, short = ROWS.double(), torch.tensor([0, 1, 0])
    term = imm.SampledIMM(target, GROUPED, 2, sequential=True, **options)
    return term(query, short)


@pytest.mark.parametrize("divergence", ["cross-entropy", "Jensen-Shannon"])
def test_data_that_changed_before_the_second_run_are_refused(divergence):
    data, net = torch.randn(5, 3, dtype=torch.float64), nn.Linear(3, 2).double()
    loss = sequential(lambda s, e: net(data[e]).log_softmax(-1), divergence=divergence)
    loss.backward(retain_graph=True)
    data.mul_(2)
    with pytest.raises(RuntimeError, match="its data were changed in place"):
        loss.backward()


def test_draws_that_cannot_be_replayed_are_refused():
    net, own = nn.Linear(3, 2).double(), torch.Generator().manual_seed(0)

    def query(short, extended):
        noise = torch.randn(len(extended), 3, generator=own, dtype=torch.float64)
        return net(noise).log_softmax(-1)

    loss = sequential(query)
    with pytest.raises(RuntimeError, match="draws from a generator of its own"):
        loss.backward()
    assert net.weight.grad is None


def test_a_sequential_term_is_watched_in_inference_mode():
    net, data = nn.Linear(3, 2).double(), torch.randn(5, 3, dtype=torch.float64)
    query = lambda s, e: net(data[e]).log_softmax(-1)  # noqa: E731
    with torch.inference_mode():
        found = sequential(query, generator=torch.Generator().manual_seed(0))
    assert found == sequential(query, generator=torch.Generator().manual_seed(0))


def test_a_generators_state_is_a_tensor():
    term = imm.SampledIMM(ROWS, GROUPED, generator=torch.Generator())
    for state in ("x", None, [1]):
        with pytest.raises((TypeError, RuntimeError), match="generator"):
            term.load_state_dict({"generator": state})
