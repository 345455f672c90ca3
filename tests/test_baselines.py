"""Noising, reverse distillation, interpolation and separate clipping, each against a line of
arithmetic.
"""

import pytest
import torch
from worlds import PairModel, generator, gradients, random_log_q, random_probabilities

import imm_lib as imm

SHORT = torch.tensor([0, 1, 0, 2, 1, 0, 2, 0])
TARGET = random_probabilities(3, 4)


def test_reverse_kd_is_the_mean_cross_entropy():
    log_q = random_log_q(8, 4)
    term = imm.ReverseKD(TARGET)
    by_hand = -sum((TARGET[s] * row).sum() for s, row in zip(SHORT, log_q, strict=True)) / 8
    torch.testing.assert_close(term(log_q, SHORT), by_hand)
    torch.testing.assert_close(term.risk, by_hand)


def test_noising_over_all_contexts_is_reverse_kd():
    """The identity of section 6: in expectation, noising compares the target with Q at every data
    point.
    """
    net, contexts = PairModel(3, 8, 4), imm.GroupedContexts(SHORT)
    log_q = net(SHORT, torch.arange(8))
    noising = torch.stack(
        [imm.noising_risk(TARGET[s], log_q[contexts.extend(int(s))]) for s in SHORT]
    ).mean()
    torch.testing.assert_close(noising, imm.ReverseKD(TARGET)(log_q, SHORT))
    term = imm.SampledNoising(TARGET, contexts, k=5, generator=generator())
    with torch.no_grad():
        draws = torch.stack([term(lambda s, e: log_q[e], SHORT) for _ in range(2000)])
    assert draws.mean().item() == pytest.approx(
        noising.item(), abs=4 * (draws.std() / 2000**0.5).item()
    )


def test_noising_bounds_imm_from_above():
    net, contexts = PairModel(3, 8, 4), imm.GroupedContexts(SHORT)
    for seed in range(10):
        risk = imm.SampledIMM(TARGET, contexts, 4, generator=generator(seed))(net, SHORT)
        assert risk <= imm.SampledNoising(TARGET, contexts, 4, generator=generator(seed))(
            net, SHORT
        )


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_interpolation(weight):
    log_q = random_log_q(8, 4)
    mixed = imm.Interpolation(TARGET, weight)(log_q, SHORT)
    torch.testing.assert_close(mixed.exp(), (1 - weight) * log_q.exp() + weight * TARGET[SHORT])


@pytest.mark.parametrize("lam", [0.0, 0.5, 3.0])
@pytest.mark.parametrize("limits", [(0.1, None), (100.0, 0.2), (100.0, 100.0)])
def test_clipped_backward(lam, limits):
    net, contexts = PairModel(3, 8, 4), imm.GroupedContexts(SHORT)
    net.head.grad = torch.ones_like(net.head)

    def losses():
        log_q = net(SHORT, torch.arange(8))
        return -log_q[:, 0].mean(), imm.ExactIMM(TARGET, contexts)(lambda s, e: log_q[e], SHORT)

    norms, total = [], [torch.zeros_like(p) for p in net.parameters()]
    for which, (limit, weight) in enumerate(((limits[0], 1.0), (limits[1] or limits[0], lam))):
        grads = gradients(losses()[which], net)
        norm = torch.cat([g.flatten() for g in grads]).norm()
        norms.append(norm)
        total = [
            t + weight * min(1.0, (limit / norm).item()) * g
            for t, g in zip(total, grads, strict=True)
        ]
    expected = [
        t + (1.0 if p is net.head else 0.0) for t, p in zip(total, net.parameters(), strict=True)
    ]
    got = imm.clipped_backward(*losses(), net.parameters(), lam, limits[0], limits[1])
    torch.testing.assert_close(torch.stack(got), torch.stack(norms))
    for parameter, gradient in zip(net.parameters(), expected, strict=True):
        came = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(came, gradient, rtol=2e-5, atol=1e-8)
