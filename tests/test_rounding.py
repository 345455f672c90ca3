"""Sums in single precision: long ones of one sign are those of float64 up to rounding."""

import math

import pytest
import torch
from torch import Tensor

from imm_lib import (
    ExactIMM,
    FusedIMM,
    FusedSampledIMM,
    GroupedContexts,
    MovingAverageIMM,
    ReverseKD,
    SampledIMM,
    SampledNoising,
    SerializedIMM,
)
from imm_lib.means import ExactMean, MovingAverageMean
from imm_lib.sums import add_rows, inner, segment_logsumexp

POINTS, LABELS = 1024, 10_000
SHORT = torch.zeros(POINTS, dtype=torch.long)
TARGET = torch.full((1, LABELS), 1 / LABELS)
CONTEXTS = GroupedContexts(SHORT)
RIGHT = math.log(LABELS)


def rows(count: int) -> Tensor:
    return torch.full((count, LABELS), -RIGHT)


def query(short: Tensor, extended: Tensor) -> Tensor:
    return rows(len(short))


def fused(labels: str) -> list[Tensor]:
    estimator = FusedIMM(TARGET, 1, LABELS, labels=labels)
    hidden, weight = torch.ones(POINTS, 1), torch.zeros(LABELS, 1)
    value = estimator(hidden, weight, None, SHORT, SHORT)
    return [value / 2, estimator.risk, estimator.cross_entropy]


def fused_sampled() -> list[Tensor]:
    estimator = FusedSampledIMM(TARGET, CONTEXTS, k=POINTS)
    hidden, weight = torch.ones(POINTS, 1), torch.zeros(LABELS, 1)
    return [estimator(lambda short, extended: hidden[extended], SHORT, weight)]


def serialized() -> list[Tensor]:
    estimator = SerializedIMM(TARGET, 1, LABELS)
    log_q = rows(POINTS)
    estimator.refresh([(log_q, SHORT)])
    return [estimator(log_q, SHORT, log_q_frozen=log_q), estimator.risk]


def called(estimator: torch.nn.Module, *arguments: object) -> list[Tensor]:
    return [estimator(*arguments), estimator.risk]


@pytest.mark.parametrize(
    "numbers",
    [
        pytest.param(lambda: called(ExactIMM(TARGET, CONTEXTS), query, SHORT), id="ExactIMM"),
        pytest.param(
            lambda: called(SampledIMM(TARGET, CONTEXTS, k=POINTS), query, SHORT), id="SampledIMM"
        ),
        pytest.param(
            lambda: called(SampledIMM(TARGET, CONTEXTS, 8, sequential=True), query, SHORT),
            id="sequential",
        ),
        pytest.param(
            lambda: called(SampledNoising(TARGET, CONTEXTS, k=POINTS), query, SHORT),
            id="SampledNoising",
        ),
        pytest.param(lambda: called(ReverseKD(TARGET), rows(POINTS), SHORT), id="ReverseKD"),
        pytest.param(
            lambda: called(MovingAverageIMM(TARGET, 1, LABELS), rows(POINTS), SHORT),
            id="MovingAverageIMM",
        ),
        pytest.param(serialized, id="SerializedIMM"),
        pytest.param(lambda: fused("all"), id="FusedIMM"),
        pytest.param(lambda: fused("none"), id="FusedIMM of no labels"),
        pytest.param(fused_sampled, id="FusedSampledIMM"),
    ],
)
def test_uniform_rows_have_the_risk_of_float64(numbers):
    for found in numbers():
        assert found.item() == pytest.approx(RIGHT, rel=5e-5)


def test_a_million_points_of_one_short_context():
    short, log_q = torch.zeros(10**6, dtype=torch.long), torch.tensor([0.1, 0.9]).log()
    log_q = log_q.expand(len(short), 2).contiguous()
    target = torch.tensor([[0.1, 0.9]])
    right = -(target * log_q[:1]).sum().item()
    average = MovingAverageIMM(target, 1, 2)
    average(log_q, short)
    fused = FusedIMM(target, 1, 2)
    value = fused(torch.ones(len(short), 1), log_q[:1].T, None, short, short)
    exact = ExactIMM(target, GroupedContexts(short))(lambda s, e: log_q[e], short)
    weighted = ExactIMM(target, GroupedContexts(short))
    found = weighted(lambda s, e: log_q[e], short, torch.full((len(short),), 0.1))
    for number in (average.risk, fused.risk, exact, found):
        assert number.item() == pytest.approx(right, rel=5e-6)
    assert fused.cross_entropy.item() == pytest.approx(-math.log(0.1), rel=5e-6)
    assert value.item() == pytest.approx(right - math.log(0.1), rel=5e-6)


def test_means_of_a_million_points():
    short, values = torch.zeros(10**6, dtype=torch.long), torch.full((10**6, 1), 0.1)
    average = MovingAverageMean(torch.zeros(1, 1), 1)
    average(values, short)
    exact = ExactMean(torch.zeros(1, 1), GroupedContexts(short))
    exact(lambda s, e: values[e], short)
    for found in (average.risk, exact.risk):
        assert found.item() == pytest.approx(0.005, rel=5e-6)


def test_long_sums_are_those_of_float64():
    a = torch.rand(3, 50_000, generator=torch.Generator().manual_seed(0))
    index = torch.arange(50_000) % 7
    assert inner(a, a).item() == pytest.approx(a.double().square().sum().item(), rel=1e-6)
    wide = torch.ones(7, 3, dtype=torch.float64).index_add(0, index, a.T.double())
    assert torch.allclose(add_rows(torch.ones(7, 3), index, a.T).double(), wide, rtol=1e-7)


def test_the_gradient_of_a_long_segment():
    values = torch.rand(5000, 2, generator=torch.Generator().manual_seed(0), requires_grad=True)
    index = torch.arange(5000) % 2
    segment_logsumexp(values, index, 2).sum().backward()
    for own in range(2):
        part = index == own
        wanted = values.detach()[part].softmax(0)
        assert torch.allclose(values.grad[part], wanted, rtol=1e-5)
