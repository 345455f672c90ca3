"""The estimators against brute force, against each other, and through saving, moving and
refreshing.
"""

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from worlds import (
    PairModel,
    assert_same,
    brute_risk,
    generator,
    gradients,
    random_log_q,
    random_probabilities,
)

import imm_lib as imm
from imm_lib.means import ExactMean

S, N, Y = 3, 8, 4
DATA = torch.tensor([0, 1, 0, 2, 1, 0, 2, 0])
BATCH = torch.tensor([0, 2, 0, 1, 0])
TARGET = random_probabilities(S, Y)


def model(dropout: float = 0.0) -> PairModel:
    return PairModel(S, N, Y, dropout)


def brute_mean_risk(net: PairModel, batch: torch.Tensor, contexts: nn.Module) -> float:
    """Enumerate every extended context of every point of the batch."""
    total = 0.0
    for s in batch:
        w = contexts.log_weights(s[None])[0].exp()
        log_q = torch.stack([net(s[None], torch.tensor([e]))[0] for e in range(N)])
        total += brute_risk(TARGET[s], log_q[w > 0], w[w > 0])
    return total / len(batch)


@pytest.mark.parametrize(
    "contexts", [imm.GroupedContexts(DATA), imm.BeliefContexts(random_probabilities(S, N))]
)
def test_exact_is_the_enumeration(contexts):
    net, exact = model(), imm.ExactIMM(TARGET, contexts)
    value = exact(net, BATCH)
    assert value.item() == pytest.approx(brute_mean_risk(net, BATCH, contexts), abs=1e-12)
    assert exact.risk == value.detach() and not exact.risk.requires_grad
    dense = torch.stack([net(s.repeat(N), torch.arange(N)) for s in BATCH])
    twin = imm.imm_risk(TARGET[BATCH], dense, contexts.log_weights(BATCH)).mean()
    assert_same(gradients(value, net), gradients(twin, net))


def test_exact_with_a_kernel_and_a_callable_target():
    values = torch.rand(N, generator=generator(5), dtype=torch.float64)
    contexts = imm.KernelContexts(values, 0.4)

    def target(x):
        return torch.stack([x, 1 - x], 1)

    def query(x, extended):
        logit = 3 * x - values[extended].cos()
        return torch.stack([logit, -logit], 1).log_softmax(1)

    value = imm.ExactIMM(target, contexts)(query, values)
    dense = torch.stack([query(x.repeat(N), torch.arange(N)) for x in values])
    twin = imm.imm_risk(target(values), dense, contexts.log_weights(values)).mean()
    torch.testing.assert_close(value, twin, rtol=1e-12, atol=1e-12)


def test_two_dimensional_short_contexts_share_samples_too():
    points = torch.tensor([[0.0, 1.0], [2.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    seen = []

    def query(short, extended):
        seen.append(short)
        return torch.zeros(len(short), 2, dtype=torch.float64).log_softmax(1)

    imm.SampledIMM(lambda s: torch.full((len(s), 2), 0.5), imm.KernelContexts(points), k=3)(
        query, points
    )
    assert seen[0].shape == (6, 2)


@pytest.mark.parametrize("k", [1, 2, 7])
@pytest.mark.parametrize("upstream", [1.0, -2.5])
def test_sequential_equals_joint_and_crosstalk(k, upstream):
    """Autograd, the explicit crosstalk of Appendix C.2 and the sequential estimator: one gradient,
    to 1e-12.
    """
    net, contexts = model(), imm.GroupedContexts(DATA)
    joint = imm.SampledIMM(TARGET, contexts, k, generator=generator(4))
    sequential = imm.SampledIMM(TARGET, contexts, k, sequential=True, generator=generator(4))
    left, right = joint(net, BATCH), sequential(net, BATCH)
    torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)
    assert joint.risk == left.detach() and sequential.risk == right.detach()

    distinct, count = BATCH.unique(return_counts=True)
    extended = contexts.sample(distinct, k, generator(4))
    log_q = net(distinct.repeat_interleave(k), extended.flatten()).unflatten(0, (-1, k))
    cached = -TARGET[distinct].unsqueeze(1) * imm.crosstalk(log_q)
    explicit = ((cached * log_q).sum((1, 2)) * count / len(BATCH)).sum()

    reference = gradients(upstream * left, net)
    assert_same(reference, gradients(upstream * right, net))
    assert_same(reference, gradients(upstream * explicit, net))
    (upstream * sequential(net, BATCH)).backward()
    assert net.unused.grad is None


def test_sequential_replays_dropout():
    contexts = imm.GroupedContexts(DATA)
    net, k = model(dropout=0.5), 4
    sequential = imm.SampledIMM(TARGET, contexts, k, sequential=True, generator=generator(4))
    torch.manual_seed(0)
    value = sequential(net, BATCH)
    after = torch.get_rng_state()
    torch.rand(3)  # what follows in the forward pass must not disturb the replay
    replayed = gradients(value, net)

    torch.manual_seed(0)
    distinct, count = BATCH.unique(return_counts=True)
    extended = contexts.sample(distinct, k, generator(4))
    log_q = torch.stack([net(distinct, column) for column in extended.unbind(1)], 1)
    twin = (imm.imm_risk(TARGET[distinct], log_q) * count / len(BATCH)).sum()
    assert torch.equal(after, torch.get_rng_state())
    torch.testing.assert_close(value, twin, rtol=1e-12, atol=1e-12)
    assert_same(replayed, gradients(twin, net))


def test_sequential_under_autocast_and_in_half_precision():
    torch.manual_seed(0)
    features = torch.randn(N, 6)
    net = nn.Linear(6, Y)

    def query(short, extended):
        return net(features[extended]).log_softmax(-1)

    def value(sequential):
        term = imm.SampledIMM(
            TARGET.float(), imm.GroupedContexts(DATA), 3, sequential, generator(1)
        )
        with torch.autocast("cpu", torch.bfloat16):
            return term(query, BATCH)

    assert_same(gradients(value(True), net), gradients(value(False), net), tolerance=2e-2)
    assert value(True).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sequential_replays_autocast_itself(dtype):
    net, seen = nn.Linear(6, Y), []

    def query(short, extended):
        logits = net(torch.ones(len(short), 6))
        seen.append((torch.is_autocast_enabled("cpu"), logits.dtype))
        return logits.float().log_softmax(-1)

    term = imm.SampledIMM(TARGET.float(), imm.GroupedContexts(DATA), 3, sequential=True)
    with torch.autocast("cpu", dtype):
        value = term(query, BATCH)
    value.backward()
    assert seen == [(True, dtype)] * 6
    seen.clear()
    value = term(query, BATCH)
    with torch.autocast("cpu", dtype):
        value.backward()
    assert seen == [(False, torch.float32)] * 6


def sequential_and_joint(net, between, query=None):
    """Gradients of both, with something done between forward and backward pass."""
    found = []
    for sequential in (True, False):
        term = imm.SampledIMM(TARGET, imm.GroupedContexts(DATA), 3, sequential, generator(2))
        torch.manual_seed(0)
        net.eval()
        value = term(query or net, BATCH)
        between()
        found.append(gradients(value, net))
    return found


class Bound:
    """A model behind an attribute, as in a training loop's object."""

    def __init__(self, net):
        self.net = net

    def query(self, short, extended):
        return self.net(short, extended)


@pytest.mark.parametrize("way", ["module", "function", "method"])
def test_sequential_replays_the_modes_of_modules(way):
    net = model(dropout=0.5)
    query = {"module": net, "function": lambda s, e: net(s, e), "method": Bound(net).query}[way]
    assert_same(*sequential_and_joint(net, net.train, query))
    assert net.training and net.dropout.training  # put back after the replay

    # and the other way round: dropout in both passes, though the model is in eval mode by then
    term = imm.SampledIMM(TARGET, imm.GroupedContexts(DATA), 3, True, generator(2))
    torch.manual_seed(0)
    net.train()
    value = term(query, BATCH)
    expected = torch.autograd.grad(value, net.head, retain_graph=True)[0]
    net.eval()
    torch.testing.assert_close(torch.autograd.grad(value, net.head)[0], expected)
    assert not net.dropout.training


def test_sequential_replays_a_query_that_switches_modes_itself():
    net = model(dropout=0.5)

    def query(short, extended):
        net.eval()
        answer = net(short, extended)
        net.train()
        return answer

    assert_same(*sequential_and_joint(net, lambda: None, query))
    assert net.training


@pytest.mark.parametrize(
    "change",
    [
        lambda net: torch.optim.SGD(net.parameters(), 0.1).step(),
        lambda net: net.load_state_dict({k: v + 1 for k, v in net.state_dict().items()}),
        lambda net: torch.no_grad()(net.head.mul_)(2.0),
        lambda net: torch.no_grad()(net.frozen.add_)(1.0),
    ],
    ids=["a step", "loaded weights", "in place", "a frozen weight"],
)
def test_sequential_refuses_changed_weights_as_autograd_does(change):
    class Net(type(model())):
        def __init__(self):
            super().__init__(6, N, Y)
            self.frozen = nn.Parameter(torch.ones(Y, dtype=torch.float64), requires_grad=False)

        def forward(self, short, extended):
            return (super().forward(short, extended) * self.frozen).log_softmax(-1)

    net = Net()
    term = imm.SampledIMM(TARGET, imm.GroupedContexts(DATA), 3, sequential=True)
    value = term(net, BATCH)
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    change(net)
    with pytest.raises(
        RuntimeError, match=r"modified by an in-place operation.*version 1, expected 0"
    ):
        value.backward()
    # without a change, twice is as good as once
    value = term(net, BATCH)
    first = torch.autograd.grad(value, net.head, retain_graph=True)
    assert_same(first, torch.autograd.grad(value, net.head))


@pytest.mark.parametrize(
    "change",
    [
        lambda net: net.requires_grad_(False),
        lambda net: net.head.requires_grad_(False),
        lambda net: setattr(net, "head", nn.Parameter(net.head.detach() + 1)),
    ],
    ids=["all frozen", "one frozen", "replaced"],
)
def test_sequential_refuses_other_weights(change):
    net = model()
    value = imm.SampledIMM(TARGET, imm.GroupedContexts(DATA), 3, sequential=True)(net, BATCH)
    change(net)
    with pytest.raises(RuntimeError, match="no longer used or want no gradient"):
        value.backward()


def test_sequential_restores_everything_if_a_replay_fails():
    net, calls = model(dropout=0.5), []

    def query(short, extended):
        calls.append(net.training)
        if len(calls) == 4:
            raise ValueError("as it happens")
        return net(short, extended)

    value = imm.SampledIMM(TARGET, imm.GroupedContexts(DATA), 3, sequential=True)(query, BATCH)
    net.eval()
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match="as it happens"):
        value.backward()
    assert calls == [True] * 4 and not net.training and not net.dropout.training
    assert torch.equal(state, torch.get_rng_state())
    assert not nn.modules.module._global_forward_pre_hooks


def test_sequential_reaches_a_graph_built_outside_and_leaves_it_usable():
    net, outside = model(), torch.ones(Y, dtype=torch.float64, requires_grad=True)
    shared = outside.exp()

    def query(short, extended):
        return (net(short, extended) * shared).log_softmax(-1)

    values = []
    for sequential in (False, True):
        term = imm.SampledIMM(TARGET, imm.GroupedContexts(DATA), 3, sequential, generator(2))
        values.append(torch.autograd.grad(term(query, BATCH), outside, retain_graph=True)[0])
    torch.testing.assert_close(*values)
    shared.sum().backward()
    assert outside.grad is not None


def test_sequential_without_gradients():
    net = model()
    sequential = imm.SampledIMM(TARGET, imm.GroupedContexts(DATA), 3, sequential=True)
    with torch.no_grad():
        assert not sequential(net, BATCH).requires_grad
    table = torch.zeros(N, Y, dtype=torch.float64, requires_grad=True)
    value = sequential(lambda short, extended: table.log_softmax(-1)[extended], BATCH)
    assert torch.autograd.grad(value, table)[0].abs().sum() > 0


def test_a_label_that_no_context_allows_has_no_gradient():
    logits = torch.zeros(N, Y, dtype=torch.float64, requires_grad=True)
    banned = torch.tensor([0.0, 0.0, 0.0, -math.inf], dtype=torch.float64)
    target = torch.tensor([[0.5, 0.5, 0.0, 0.0]] * S, dtype=torch.float64)
    for sequential in (False, True):
        term = imm.SampledIMM(target, imm.GroupedContexts(DATA), 3, sequential)
        value = term(lambda short, extended: (logits + banned).log_softmax(-1)[extended], BATCH)
        assert torch.isfinite(torch.autograd.grad(value, logits)[0]).all()


def test_sharing_samples_is_unbiased_for_the_batch():
    """Sampled at k: the mean over draws is the expectation computed by enumerating all draws of k =
    2.
    """
    net, contexts = model(), imm.GroupedContexts(DATA)
    with torch.no_grad():
        expected = 0.0
        for s in BATCH:
            extend = contexts.extend(s.item())
            pairs = torch.cartesian_prod(extend, extend)
            log_q = net(s.expand(pairs.numel()), pairs.flatten()).unflatten(0, (-1, 2))
            expected += imm.imm_risk(TARGET[s].expand(len(pairs), Y), log_q).mean().item() / len(
                BATCH
            )
        term = imm.SampledIMM(TARGET, contexts, k=2, generator=generator(9))
        draws = torch.stack([term(net, BATCH) for _ in range(3000)])
    error = (draws.std() / math.sqrt(len(draws))).item()
    assert draws.mean().item() == pytest.approx(expected, abs=4 * error)


def test_k_equal_one_is_noising():
    net, contexts = model(), imm.GroupedContexts(DATA)
    sampled = imm.SampledIMM(TARGET, contexts, 1, generator=generator(3))(net, BATCH)
    noising = imm.SampledNoising(TARGET, contexts, 1, generator=generator(3))(net, BATCH)
    torch.testing.assert_close(sampled, noising)
    assert_same(gradients(sampled, net), gradients(noising, net))


def full_batch(net: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    return net(DATA, torch.arange(N)), DATA


def test_serialized_has_the_exact_gradient_right_after_a_refresh():
    net, serialized = model(), imm.SerializedIMM(TARGET, S, Y).double()
    log_q, short = full_batch(net)
    serialized.refresh([(log_q[:3], short[:3]), (log_q[3:], short[3:])])
    exact = imm.ExactIMM(TARGET, imm.GroupedContexts(DATA))
    value = exact(lambda s, e: net(DATA[e], e), DATA)
    assert serialized(log_q, short, log_q.detach()).requires_grad
    assert_same(gradients(value, net), gradients(serialized(log_q, short, log_q.detach()), net))
    assert serialized.risk.item() == pytest.approx(value.item(), abs=1e-12)


@given(st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_serialized_minimises_a_majoriser(seed):
    """With the frozen ratio, risk(Q) <= risk(Q†) + surrogate(Q) - surrogate(Q†): a generalised EM
    step.
    """
    serialized = imm.SerializedIMM(TARGET, S, Y).double()
    frozen, moved = random_log_q(N, Y, seed=seed), random_log_q(N, Y, seed=seed + 1)
    serialized.refresh([(frozen, DATA)])
    start = serialized(frozen, DATA, frozen)
    bound = serialized.risk + serialized(moved, DATA, frozen) - start
    serialized.refresh([(moved, DATA)])
    serialized(moved, DATA, moved)
    assert serialized.risk <= bound + 1e-10


def test_refresh_is_all_or_nothing():
    serialized = imm.SerializedIMM(TARGET, S, Y).double()
    log_q = random_log_q(N, Y)
    serialized.refresh([(log_q, DATA)])
    before = copy.deepcopy(serialized.state_dict())
    for bad in ([], [(log_q, DATA), (log_q + 1, DATA)], [(log_q, DATA + 1)]):
        with pytest.raises(ValueError):
            serialized.refresh(bad)
        assert all(
            torch.equal(before[name], value) for name, value in serialized.state_dict().items()
        )


@pytest.mark.parametrize("momentum", [0.01, 0.3, 1.0])
def test_moving_average_against_a_loop_in_probabilities(momentum):
    term = imm.MovingAverageIMM(TARGET, S, Y, momentum).double()
    table = {}
    for step in range(6):
        short = torch.randint(S, (5,), generator=generator(step))
        log_q = random_log_q(5, Y, seed=step).requires_grad_()
        surrogate = term(log_q, short)
        for s in short.unique().tolist():
            mean = log_q.detach()[short == s].exp().mean(0)
            table[s] = mean if s not in table else (1 - momentum) * table[s] + momentum * mean
        rows = torch.stack([table[s] for s in short.tolist()])
        gradient = -TARGET[short] * log_q.detach().exp() / rows / len(short)
        torch.testing.assert_close(
            torch.autograd.grad(surrogate, log_q)[0], gradient, rtol=1e-12, atol=1e-12
        )
        risk = -(TARGET[short] * rows.log()).sum(1).mean()
        torch.testing.assert_close(term.risk, risk, rtol=1e-12, atol=1e-12)
    assert term.visited.tolist() == [s in table for s in range(S)]


def test_moving_average_of_a_full_batch_without_memory_is_exact():
    net, term = model(), imm.MovingAverageIMM(TARGET, S, Y, momentum=1.0).double()
    value = imm.ExactIMM(TARGET, imm.GroupedContexts(DATA))(lambda s, e: net(DATA[e], e), DATA)
    assert_same(gradients(value, net), gradients(term(*full_batch(net)), net))


def test_moving_average_stands_still_in_eval_mode():
    term = imm.MovingAverageIMM(TARGET, S, Y).double()
    term(random_log_q(N, Y), DATA)
    before = term.table.clone()
    term.eval()(random_log_q(N, Y, seed=8), DATA)
    assert torch.equal(term.table, before)


def test_moving_average_limits_the_ratio():
    short, low = torch.tensor([0]), torch.tensor([[-30.0, -30.0, -30.0, 0.0]], dtype=torch.float64)
    term = imm.MovingAverageIMM(TARGET, S, Y, momentum=0.001, max_ratio=5.0).double()
    term(low, short)
    log_q = torch.full((1, Y), 0.25, dtype=torch.float64).log().requires_grad_()
    (gradient,) = torch.autograd.grad(term(log_q, short), log_q)
    assert (gradient / -TARGET[0])[0, :3].tolist() == pytest.approx([5.0] * 3)


def test_unlikely_labels_stay_in_the_table():
    term = imm.MovingAverageIMM(TARGET.float(), S, Y, momentum=0.5)
    rare = torch.tensor([[-200.0, -200.0, -200.0, 0.0]])
    for _ in range(3):
        term(rare, torch.tensor([1]))
    assert term.table[1, 0].item() == pytest.approx(-200.0, abs=1e-3)


@pytest.mark.parametrize("build", [imm.SerializedIMM, imm.MovingAverageIMM])
def test_state_round_trip(build):
    first, second = build(TARGET, S, Y).double(), build(TARGET, S, Y).double()
    log_q = random_log_q(N - 1, Y)
    if build is imm.SerializedIMM:
        first.refresh([(log_q, DATA[:-1])])
    else:
        first(log_q, DATA[:-1])
    assert set(first.state_dict()) == {"table", "visited"}
    second.load_state_dict(first.state_dict())
    args = (log_q, DATA[:-1]) + ((log_q,) if build is imm.SerializedIMM else ())
    assert torch.equal(first(*args), second(*args))


def test_a_mean_over_repeated_points_counts_each():
    net, contexts = model(), imm.GroupedContexts(DATA)
    exact = imm.ExactIMM(TARGET, contexts)
    parts = [exact(net, s[None]).item() for s in BATCH]
    assert exact(net, BATCH).item() == pytest.approx(sum(parts) / len(parts), abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_tables_take_half_precision(dtype):
    log_q = random_log_q(N, Y).to(dtype).requires_grad_()
    term = imm.MovingAverageIMM(TARGET.float(), S, Y)
    term(log_q, DATA).backward()
    assert log_q.grad.dtype == dtype and term.table.dtype == torch.float32


def test_a_module_as_target_is_given_and_not_learnt():
    net = nn.Sequential(nn.Embedding(2, 2), nn.Dropout(0.5), nn.Softmax(-1))
    term = imm.MovingAverageIMM(net, 2, 2).train().bfloat16()
    term.eval()
    assert all(module.training for module in net.modules())  # its mode is its owner's
    assert list(term.parameters()) == [] and set(term.state_dict()) == {"table", "visited"}
    assert net[0].weight.dtype == torch.float32
    assert term.to("meta") is term and net[0].weight.device.type == "meta"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_cast_to_half_precision_keeps_its_tables(dtype):
    """A running average in bfloat16 would stall at small momenta; rows would not sum to 1."""
    parent = nn.ModuleDict(
        {
            "term": imm.MovingAverageIMM(TARGET.float(), S, Y, momentum=0.002),
            "sampled": imm.SampledIMM(
                TARGET.float(), imm.BeliefContexts(random_probabilities(S, N).float()), 2
            ),
            "bigram": imm.KneserNeyBigram.fit(torch.tensor([0, 1, 2, 0, 1, 0, 2, 2, 1]), 3),
        }
    )
    twin = imm.MovingAverageIMM(TARGET, S, Y, momentum=0.002).double()
    parent.to(dtype)
    assert all(b.dtype == torch.float32 for b in parent.buffers() if b.is_floating_point())
    for seed in range(40):
        log_q = random_log_q(N, Y, seed=seed).to(dtype)
        parent["term"](log_q, DATA)
        twin(log_q.double(), DATA)
    torch.testing.assert_close(parent["term"].table.double(), twin.table, rtol=1e-5, atol=1e-5)


def test_a_target_is_checked_at_every_answer_on_a_cpu():
    rows = TARGET.clone()
    term = imm.ReverseKD(lambda short: rows[short])
    term(random_log_q(N, Y), DATA)
    rows[1] *= 2
    with pytest.raises(ValueError, match=r"target\(short\) must sum to 1"):
        term(random_log_q(N, Y), DATA)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_table_that_was_changed_in_place_is_checked_again(dtype):
    first, second = TARGET.to(dtype), TARGET.flip(1).to(dtype)
    log_q = random_log_q(N, Y)
    rows = first.clone()
    term = imm.ReverseKD(rows)
    before = term(log_q, DATA)
    rows.copy_(second)
    after = imm.ReverseKD(second)(log_q, DATA)
    assert term(log_q, DATA) == copy.deepcopy(term)(log_q, DATA) == after != before
    rows[1] *= 2
    for _ in range(2):
        with pytest.raises(ValueError, match="target must sum to 1"):
            term(log_q, DATA)
    rows[1] /= 2
    assert pickle.loads(pickle.dumps(term))(log_q, DATA) == after
    torch.testing.assert_close(term.double()(log_q, DATA), after, rtol=1e-6, atol=0)


def test_a_cast_is_no_change(monkeypatch):
    rows = TARGET.clone().mul_(1)
    term, looked = imm.ReverseKD(rows), []
    monkeypatch.setattr(imm.distributions, "probabilities", lambda *_: looked.append(1))
    term(random_log_q(N, Y), DATA)
    term.float()(random_log_q(N, Y).float(), DATA)
    assert not looked


def test_a_table_of_means_that_was_changed_in_place_is_checked_again():
    rows = torch.zeros(S, 2)
    term = ExactMean(rows, imm.GroupedContexts(DATA, S))
    ones = lambda short, extended: torch.ones(len(extended), 2)  # noqa: E731
    assert term(ones, DATA) == 1
    rows += 1
    assert term(ones, DATA) == 0
    rows[0] = math.nan
    with pytest.raises(ValueError, match="target must be finite"):
        term(ones, DATA)


def test_a_table_of_half_precision_is_still_normalised_when_it_is_cast():
    rows = random_probabilities(S, 50).bfloat16()
    for cast in (nn.Module.float, nn.Module.double):
        term = imm.ReverseKD(rows)
        expected = term.target(DATA)
        found = cast(nn.ModuleList([term]))[0].target(DATA)
        torch.testing.assert_close(found.float(), expected)
        torch.testing.assert_close(found.sum(1), torch.ones_like(found.sum(1)))


def test_a_bad_target_leaves_the_generator_alone():
    source = generator(1)
    before = source.get_state()
    with pytest.raises(ValueError):
        imm.SampledIMM(TARGET[:1], imm.GroupedContexts(DATA), 2, generator=source)(
            model(), torch.tensor([1])
        )
    assert torch.equal(before, source.get_state())


@pytest.mark.parametrize("kind", ["serialized", "average", "clipped", "eval"])
def test_parts_of_a_batch_are_the_batch(monkeypatch, kind):
    """On a CPU a batch is worked on in parts of whole short contexts: as small as one, or all at
    once.
    """
    from imm_lib import surrogates

    generator = torch.Generator().manual_seed(0)
    short = torch.randint(6, (40,), generator=generator)
    target = torch.rand(6, 5, generator=generator).softmax(-1)
    first, second = (3 * torch.randn(40, 5, generator=generator) for _ in range(2))
    found = []
    for size in (1, 300, 2**20):
        monkeypatch.setattr(surrogates, "CACHE", size)
        logits = second.clone().requires_grad_()
        log_q = logits.log_softmax(-1)
        if kind == "serialized":
            estimator = imm.SerializedIMM(target, 6, 5)
            estimator.refresh([(first.log_softmax(-1), short)])
            loss = estimator(log_q, short, first.log_softmax(-1))
        else:
            estimator = imm.MovingAverageIMM(
                target, 6, 5, 0.3, 1.5 if kind == "clipped" else math.inf
            )
            estimator(first.log_softmax(-1), short)
            loss = estimator.train(kind != "eval")(log_q, short)
        found.append((loss, torch.autograd.grad(loss, logits)[0], estimator.table, estimator.risk))
    for other in found[1:]:
        torch.testing.assert_close(found[0], other)


def test_sequential_risk_needs_a_pass():
    with pytest.raises(ValueError, match="passes must hold at least one"):
        imm.sequential.sequential_risk(torch.tensor([[0.5, 0.5]]), [])


@pytest.mark.parametrize("kind", [imm.SampledIMM, imm.SampledNoising, imm.FusedSampledIMM])
def test_the_generator_is_part_of_the_state(kind):
    """Under a prefix, too; a term without a generator of its own neither gives nor takes one."""
    contexts = imm.GroupedContexts(DATA)

    def build(source):
        return nn.ModuleDict({"term": kind(TARGET, contexts, 3, generator=source)})

    first, second, without = build(generator(1)), build(generator(2)), build(None)
    state = first.state_dict()
    assert list(state) == ["term.generator"]
    assert list(without.state_dict()) == []
    second.load_state_dict(state)
    short = torch.tensor([0, 1, 2])
    drawn = [net["term"].draw(short)[2] for net in (first, second)]
    assert torch.equal(*drawn)
    with pytest.raises(RuntimeError, match=r"Missing key.*term.generator"):
        second.load_state_dict({})
    assert second.load_state_dict({}, strict=False).missing_keys == ["term.generator"]
    with pytest.raises(RuntimeError, match=r"Unexpected key.*term.generator"):
        without.load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*term.other"):
        second.load_state_dict({**state, "term.other": torch.zeros(1)})


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", ["moving average", "serialized", "exact", "sampled", "reverse-KD"])
def test_a_group_of_one_rank_is_no_group(name, weighted, one_rank):
    net, found = model(), []
    weight = torch.tensor([1.0, 0.0, 2.0, 0.5, 1.0], dtype=torch.float64) if weighted else None
    contexts, places = imm.GroupedContexts(DATA), torch.arange(len(BATCH))
    for group in (None, one_rank):
        build = {
            "moving average": lambda g=group: imm.MovingAverageIMM(TARGET, S, Y, 0.3, group=g),
            "serialized": lambda g=group: imm.SerializedIMM(TARGET, S, Y, group=g),
            "exact": lambda g=group: imm.ExactIMM(TARGET, contexts, group=g),
            "sampled": lambda g=group: imm.SampledIMM(
                TARGET, contexts, 3, generator=generator(1), group=g
            ),
            "reverse-KD": lambda g=group: imm.ReverseKD(TARGET, group=g),
        }
        term = build[name]().double()
        log_q = net(BATCH, places)
        if name == "serialized":
            old = random_log_q(len(BATCH), Y)
            term.refresh([(old[:2], BATCH[:2]), (old[2:], BATCH[2:])])
            value = term(log_q, BATCH, old, weight)
        elif name in ("exact", "sampled"):
            distinct = torch.tensor([0, 1, 2, 1, 1])  # as many draws as there are rows
            value = term(net, distinct if name == "exact" else BATCH, weight)
        else:
            value = term(log_q, BATCH, weight)
        same = [term.table, term.visited] if hasattr(term, "table") else []
        value_too = [] if name == "sampled" else [value, term.risk, *gradients(value, net)]
        found.append(value_too + same)
    torch.testing.assert_close(found[1], found[0], equal_nan=True)  # rows never visited
