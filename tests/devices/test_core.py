"""The core on every device there is: values, gradients, tables and draws are those of the CPU.

The second device of ``second.py`` is always there, so that this runs without a GPU too; where there
is a GPU, every test runs there as well.
"""

import contextlib
import io
import math

import pytest
import torch
from second import KIND, SECOND, Elsewhere, second_device
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import imm_lib as imm
from imm_lib import checks, divergences, means, premise, worth
from imm_lib.device import count, find
from imm_lib.fused import FusedIMM

DEVICES = [SECOND, *(torch.device("cuda", i) for i in range(min(count("cuda"), 1)))]
CPU = torch.device("cpu")
S, E, Y, N = 4, 5, 3, 12
DOUBLE = torch.float64


def test_a_gpu_is_tested_where_there_is_one():
    kinds = {device.type for device in DEVICES}
    assert kinds >= {"cuda"} if torch.cuda.is_available() else len(kinds) == 1


@contextlib.contextmanager
def on(device: torch.device):
    """What is needed to make tensors there."""
    with second_device() if device == SECOND else contextlib.nullcontext():
        yield


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


TARGET = draw(S, Y, seed=1).softmax(-1)
SHORT = torch.tensor([2, 0, 1, 1, 3, 0, 2, 2, 1, 0, 3, 1])
LOG_Q = draw(N, Y, seed=2)


def same(work, device: torch.device) -> None:
    """``work(device)`` gives a tensor, or several, equal to those of the CPU and made there."""
    here = work(CPU)
    with on(device):
        there = work(device)
        for near, far in zip(*map(_several, (here, there)), strict=True):
            assert far.device.type == device.type
            torch.testing.assert_close(far.cpu(), near, equal_nan=True)


def _several(found):
    return found if isinstance(found, list | tuple) else [found]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


CONTEXTS = {
    "grouped": lambda: imm.GroupedContexts(SHORT),
    "kernel": lambda: imm.KernelContexts(draw(N, seed=3), 0.7),
    "belief": lambda: imm.BeliefContexts(draw(S, N, seed=4).softmax(-1)),
}


def asked(kind: str, device: torch.device) -> torch.Tensor:
    """Short contexts in any order, some of them more than once."""
    values = draw(3, seed=5).repeat(2) if kind == "kernel" else SHORT
    return values.to(device)


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("kind", CONTEXTS)
def test_contexts(kind, device):
    def work(where):
        contexts, short = CONTEXTS[kind]().to(where), asked(kind, where)
        row, extended, log_w = contexts.support(short)
        drawn = contexts.sample(short, 6, seeded())
        return [contexts.log_weights(short), row, extended, log_w, drawn]

    same(work, device)


def target_of(kind: str, where: torch.device):
    if kind == "kernel":
        slope = draw(Y, seed=6).to(where)
        return lambda short: (short.unsqueeze(-1) * slope).softmax(-1)
    return TARGET.to(where)


def gradient(loss: torch.Tensor, *inputs: torch.Tensor) -> list[torch.Tensor]:
    return [loss.detach(), *torch.autograd.grad(loss, inputs)]


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("kind", CONTEXTS)
@pytest.mark.parametrize("estimator", ["exact", "joint", "sequential", "noising"])
def test_estimators_that_query(estimator, kind, device):
    def work(where):
        contexts, target = CONTEXTS[kind]().to(where), target_of(kind, where)
        options = {"k": 3, "generator": seeded()}
        term = {
            "exact": lambda: imm.ExactIMM(target, contexts),
            "joint": lambda: imm.SampledIMM(target, contexts, **options),
            "sequential": lambda: imm.SampledIMM(target, contexts, sequential=True, **options),
            "noising": lambda: imm.SampledNoising(target, contexts, **options),
        }[estimator]()
        logits = LOG_Q.clone().to(where).requires_grad_()
        query = lambda short, extended: logits.log_softmax(-1)[extended]  # noqa: E731
        return gradient(term(query, asked(kind, where)), logits)

    same(work, device)


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("momentum", [1.0, 0.2])
def test_the_moving_average_and_its_table(momentum, device):
    def work(where):
        term = imm.MovingAverageIMM(TARGET, S, Y, momentum).double().to(where)
        logits, found = LOG_Q.clone().to(where).requires_grad_(), []
        for _ in range(3):
            found += gradient(term(logits.log_softmax(-1), SHORT.to(where)), logits)
            found.append(term.risk)
        return [*found, term.table, term.visited]

    same(work, device)


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_serialized(device):
    def work(where):
        term = imm.SerializedIMM(TARGET, S, Y).double().to(where)
        logits, short = LOG_Q.clone().to(where).requires_grad_(), SHORT.to(where)
        log_q = logits.log_softmax(-1)
        term.refresh([(log_q.detach(), short)])
        return [*gradient(term(log_q, short, log_q.detach()), logits), term.table, term.risk]

    same(work, device)


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("labels", ["all", "none"])
def test_the_fused_last_layer(labels, device):
    def work(where):
        term = FusedIMM(TARGET, S, Y, labels=labels).double().to(where)
        hidden = draw(N, 6, seed=7).to(where).requires_grad_()
        weight, bias = (x.to(where).requires_grad_() for x in (draw(Y, 6), draw(Y, seed=8)))
        wanted, short = (SHORT % Y).to(where), SHORT.to(where)
        loss = term(hidden, weight, bias, wanted, short, lam=0.7)
        return [*gradient(loss, hidden, weight, bias), term.cross_entropy, term.risk, term.table]

    same(work, device)


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_baselines_and_pure_functions(device):
    def work(where):
        target, short = TARGET.to(where), SHORT.to(where)
        logits = draw(S, E, Y, seed=9).to(where).requires_grad_()
        log_q, log_w = logits.log_softmax(-1), draw(S, E).log_softmax(-1).to(where)
        one = LOG_Q.clone().to(where).requires_grad_()
        reverse = imm.ReverseKD(target)(one.log_softmax(-1), short)
        mixed = imm.Interpolation(target, 0.3)(LOG_Q.to(where).log_softmax(-1), short)
        risks = imm.imm_risk(target, log_q, log_w) + imm.noising_risk(target, log_q, log_w)
        shares = imm.crosstalk(log_q.detach(), log_w)
        found = [mixed, shares, imm.induce(log_q.detach(), log_w)]
        return [*gradient(reverse, one), *gradient(risks.sum(), logits), *found]

    same(work, device)


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("name", divergences.NAMED)
def test_divergences(name, device):
    def work(where):
        logits = draw(S, Y, seed=10).to(where).requires_grad_()
        value = divergences.NAMED[name](TARGET.to(where), logits.log_softmax(-1))
        return gradient(value.sum(), logits)

    same(work, device)


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_the_bigram(device):
    share = 1 / torch.arange(1, 31, dtype=DOUBLE)
    tokens = torch.multinomial(share, 2000, True, generator=seeded())

    def work(where):
        text = tokens.to(where)
        bigram = imm.KneserNeyBigram.fit(text, 30)
        some = torch.arange(30, device=where)
        whole = bigram.log_prob(text[:-1], text[1:])
        perplexity = torch.tensor(bigram.perplexity(text[:300]), device=where)
        return [bigram(some), whole, perplexity]

    same(work, device)


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_a_pomdps_bound(device):
    from imm_lib.experiments.grid import Torus

    def work(where):
        torus = Torus(5).to(where)
        bound = imm.FastInformedBound.solve(torus.pomdp(), 0.9)
        return [bound.alpha, bound(torus.belief), bound.softmax(torus.belief, 0.5)]

    same(work, device)


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_finite_worlds(device):
    joint = draw(S, E, Y).flatten().softmax(0).view(S, E, Y)

    def work(where):
        world = imm.TabularWorld(joint.to(where))
        log_q = draw(S, E, Y, seed=11).log_softmax(-1).to(where)
        numbers = [world.imm_risk(log_q), world.noising_risk(log_q), world.kl(log_q)]
        return [world.induced, world.noising_minimiser(0.5), world.induce(log_q), *numbers]

    same(work, device)


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_worth_and_premise(device):
    def work(where):
        theta = LOG_Q.clone().to(where).requires_grad_()
        short, points = SHORT.to(where), torch.arange(N, device=where)
        contexts = imm.GroupedContexts(short)
        query = lambda short, extended: theta.log_softmax(-1)[extended]  # noqa: E731
        sample = contexts, short, points
        worth = imm.worth.measure(query, [theta], *sample, damping=0.1)
        lam = imm.worth.suggest_lambda(query, [theta], *sample, m=50, damping=0.1)
        label = (SHORT % Y).to(where)
        lead = imm.premise.lead(query, contexts, TARGET.to(where), short, label)
        surprise = imm.premise.surprise(TARGET.to(where)[short], label)
        told = [lam, lead.ahead, lead.error, surprise.z, worth.optimal_lambda(N, 50)]
        return [worth.gain, worth.price, torch.tensor(told, dtype=DOUBLE, device=where)]

    same(work, device)


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_the_sequential_risk_replays_dropout(device):
    """Its gradient is that of all passes at once, under the same masks."""
    with on(device):
        network = nn.Sequential(nn.Linear(N, 8), nn.Dropout(0.4), nn.Linear(8, Y)).double()
        network = network.to(device)
        contexts, short = CONTEXTS["grouped"]().to(device), torch.arange(S, device=device)
        inputs, target = torch.eye(N, dtype=DOUBLE, device=device), TARGET.to(device)
        generator = torch.get_device_module(device)

        def query(short, extended):
            return network(inputs[extended]).log_softmax(-1)

        drawn = contexts.sample(short, 3, seeded())
        state = generator.get_rng_state(device)
        passes = torch.stack([query(short, column) for column in drawn.unbind(1)], 1)
        wanted = gradient(imm.imm_risk(target, passes).mean(), *network.parameters())
        generator.set_rng_state(state, device)
        term = imm.SampledIMM(target, contexts, 3, sequential=True, generator=seeded())
        found = gradient(term(query, short), *network.parameters())
        for far, near in zip(found, wanted, strict=True):
            torch.testing.assert_close(far, near)
        generator.set_rng_state(state, device)
        other = term(query, short)  # the masks matter
        assert not torch.allclose(other, found[0]) or math.isclose(other.item(), found[0].item())


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(half, device):
    with on(device):
        short = SHORT.to(device)
        term = imm.MovingAverageIMM(TARGET.float(), S, Y, 0.2).to(device).to(half)
        assert term.table.dtype == torch.float32
        logits = LOG_Q.to(device, half).requires_grad_()
        near = LOG_Q.to(device).float().requires_grad_()
        slow = imm.MovingAverageIMM(TARGET.float(), S, Y, 0.2).to(device)
        far = gradient(term(logits.log_softmax(-1), short), logits)
        for found, wanted in zip(
            far, gradient(slow(near.log_softmax(-1), short), near), strict=True
        ):
            torch.testing.assert_close(found.float(), wanted, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_a_state_travels_between_devices(device):
    def made():
        generator = seeded(3)
        contexts = imm.GroupedContexts(SHORT)
        sampled = imm.SampledIMM(TARGET.float(), contexts, 2, generator=generator)
        return nn.ModuleList([imm.MovingAverageIMM(TARGET.float(), S, Y, 0.2), sampled])

    with on(device):
        there, log_q = made().to(device), LOG_Q.float().to(device).log_softmax(-1)
        there[0](log_q, SHORT.to(device))
        there[1].contexts.sample(torch.arange(S, device=device), 5, there[1].generator)
        file = io.BytesIO()
        torch.save(there.state_dict(), file)
        file.seek(0)
        here = made()
        here.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
        assert here[0].table.device.type == "cpu"
        torch.testing.assert_close(here[0].table, there[0].table.cpu(), equal_nan=True)
        assert torch.equal(here[1].generator.get_state(), there[1].generator.get_state())
        back = made().to(device)
        back.load_state_dict(here.state_dict())
        assert back[0].table.device.type == device.type
        torch.testing.assert_close(back[0].table, there[0].table, equal_nan=True)


class NoDouble(TorchDispatchMode):
    """As on MPS: no tensor there has float64."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for value in tree_leaves(found):
            if isinstance(value, Elsewhere) and value.dtype == torch.float64:
                raise TypeError(f"Cannot convert a tensor to float64 ({func.__name__})")
        return found


@contextlib.contextmanager
def without_float64(monkeypatch):
    monkeypatch.setattr(checks, "NARROW", {KIND})
    with second_device(), NoDouble():
        yield


@pytest.mark.parametrize("kind", CONTEXTS)
@pytest.mark.parametrize("half", [torch.float32, torch.float16], ids=str)
def test_the_core_on_a_device_without_float64(monkeypatch, kind, half):
    with without_float64(monkeypatch):
        with pytest.raises(TypeError):
            torch.ones(1).to(SECOND).double()
        contexts = CONTEXTS[kind]().float().to(SECOND)
        target = TARGET.float().to(SECOND)
        if kind == "kernel":
            ones = torch.ones(Y, device=SECOND)
            target = lambda short: (short.unsqueeze(-1) * ones).softmax(-1)  # noqa: E731
        short = asked(kind, CPU)
        short = (short.float() if kind == "kernel" else short).to(SECOND)
        contexts.log_weights(short)
        logits = LOG_Q.to(half).to(SECOND).requires_grad_()
        query = lambda short, extended: logits.log_softmax(-1)[extended]  # noqa: E731
        for term in (
            imm.ExactIMM(target, contexts),
            imm.SampledIMM(target, contexts, 3, generator=seeded()),
            imm.SampledIMM(target, contexts, 3, sequential=True),
            imm.SampledNoising(target, contexts, 3),
        ):
            assert all(torch.isfinite(x).all() for x in gradient(term(query, short), logits))
        if kind == "kernel":
            return
        for term in (imm.MovingAverageIMM(target, S, Y).to(SECOND), imm.ReverseKD(target)):
            value = term(logits.log_softmax(-1), SHORT.to(SECOND))
            assert all(torch.isfinite(x).all() for x in gradient(value, logits))
        bigram = imm.KneserNeyBigram.fit(SHORT, S).to(SECOND)
        assert torch.isfinite(bigram.log_prob(short, short)).all()
        assert torch.isfinite(bigram(short)).all()


@pytest.mark.filterwarnings("ignore:contexts give")
def test_what_needs_float64_says_so(monkeypatch):
    with without_float64(monkeypatch):
        short, target = SHORT.to(SECOND), TARGET.float().to(SECOND)
        contexts = imm.GroupedContexts(SHORT).to(SECOND)
        logits = LOG_Q.float().to(SECOND).requires_grad_()
        query = lambda short, extended: logits.log_softmax(-1)[extended]  # noqa: E731
        points, square = torch.arange(N).to(SECOND), torch.eye(2).to(SECOND)
        label = short % Y
        calls = (
            lambda: premise.lead(query, contexts, target, short, label),
            lambda: premise.surprise(target[short], label),
            lambda: worth.informations(query, [logits], contexts, short, points),
            lambda: worth.suggest_lambda(query, [logits], contexts, short, points),
            lambda: worth.Worth.of(square, square),
            lambda: means.linear_worth(square, square, square[0], 1.0),
            lambda: imm.KneserNeyBigram.fit(short, S),
        )
        for call in calls:
            with pytest.raises(
                TypeError, match=r"must be on a device with float64, .*IMM_DEVICE=cpu"
            ):
                call()


def test_the_device_of_this_process(monkeypatch):
    monkeypatch.delenv("IMM_DEVICE", raising=False)
    expected = next(kind for kind in ("cuda", "mps", "cpu") if count(kind))
    assert imm.device().type == expected
    monkeypatch.setenv("IMM_DEVICE", "")
    assert imm.device().type == expected
    monkeypatch.setenv("IMM_DEVICE", "cpu")
    assert imm.device() == CPU


@pytest.mark.parametrize(
    ("there", "expected"), [({"cuda": 2, "mps": 1}, "cuda"), ({"mps": 1}, "mps"), ({}, "cpu")]
)
def test_the_best_device_is_taken(monkeypatch, there, expected):
    monkeypatch.delenv("IMM_DEVICE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in there)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there.get("cuda", 0))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in there)
    assert imm.device() == torch.device(expected)
    for name in ("cpu", "cuda:1", "mps"):
        monkeypatch.setenv("IMM_DEVICE", name)
        if name == "cpu" or name.partition(":")[0] in there:
            assert imm.device() == torch.device(name)
        else:
            with pytest.raises(ValueError, match=f"IMM_DEVICE must be .* got '{name}' with 0 of"):
                imm.device()


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "meta", "tpu", "cuda;1", "cuda:-1"])
def test_a_bad_word_is_one_sentence(monkeypatch, name):
    monkeypatch.setenv("IMM_DEVICE", name)
    with pytest.raises(ValueError, match=f"IMM_DEVICE must be cpu, cuda, cuda:N or mps, .*{name}"):
        imm.device()
    with pytest.raises(ValueError, match="device must be"):
        find(name)


def test_a_device_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("IMM_DEVICE", "cuda:7")
    with pytest.raises(ValueError, match=r"IMM_DEVICE must be .* got 'cuda:7' with 1 of"):
        imm.device()
