"""Faults that were once put into the code by hand and that no test found."""

import math

import pytest
import torch

import imm_lib as imm
from imm_lib import checks, divergences, worth
from imm_lib.premise import surprise
from imm_lib.sums import dot, once
from imm_lib.targets.table import CallableTarget, TableTarget


def test_a_kernel_of_two_columns_is_that_of_the_sum_of_distances():
    values = torch.tensor([[0.0, 0.0], [3.0, 4.0], [1.0, 1.0]], dtype=torch.float64)
    contexts = imm.KernelContexts(values, bandwidth=2.0)
    asked = torch.tensor([[0.0, 0.0], [0.5, -1.0]], dtype=torch.float64)
    distance = (asked.unsqueeze(1) - values).abs().sum(-1)  # 7 and not 5 from the second point
    weights = (-distance / 2).exp()
    expected = (weights / weights.sum(1, keepdim=True)).log()
    torch.testing.assert_close(contexts.log_weights(asked), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("far", [1e6, 1e20, 1e30])
def test_a_kernel_is_relative_to_the_nearest_point(dtype, far):
    """Far from all data, rounding of the distances themselves must not decide, nor overflow."""
    values = torch.tensor([0.0, 1.0], dtype=dtype)
    bandwidth = torch.finfo(dtype).tiny * 4
    contexts = imm.KernelContexts(values, bandwidth=bandwidth)
    weights = contexts.log_weights(torch.tensor([0.0, 1.0], dtype=dtype)).exp()
    assert weights.tolist() == [[1.0, 0.0], [0.0, 1.0]]
    found = contexts.log_weights(torch.tensor([far], dtype=dtype)).exp()
    assert found.sum().item() == pytest.approx(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_times_minus_infinity_is_zero(dtype):
    weight = torch.tensor([[0.0, 0.5], [1.0, 0.0]], dtype=dtype)
    log_p = torch.tensor([[-math.inf, -2.0], [-3.0, -math.inf]], dtype=dtype)
    assert dot(weight, log_p).item() == -4.0
    assert dot(torch.ones(2, dtype=dtype), log_p[0]).item() < -1e30  # where the weight is not 0


def test_the_ratio_to_a_row_that_excludes_a_label_is_finite():
    """The model has come to allow a label to which the table of the last refresh gives nothing."""
    frozen = torch.tensor([[1.0, 0.0], [0.5, 0.5]]).log()
    target = torch.tensor([[0.5, 0.5]])
    term = imm.SerializedIMM(target, 1, 2)
    short = torch.tensor([0])
    term.refresh([(frozen[:1], short)])
    log_q = torch.tensor([[0.3, 0.7]]).log().requires_grad_()
    term(log_q, short, log_q_frozen=frozen[1:]).backward()
    assert log_q.grad.isfinite().all()
    assert log_q.grad[0, 1] < -1e30


def test_the_z_of_surprise():
    """One certain-looking row, by hand: mean, variance and square root."""
    rows = torch.tensor([[0.8, 0.2], [0.5, 0.5], [0.3, 0.7]], dtype=torch.float64)
    label = torch.tensor([1, 0, 0])
    loss = [-math.log(0.2), -math.log(0.5), -math.log(0.3)]
    entropy = [-sum(p * math.log(p) for p in row) for row in rows.tolist()]
    variance = [
        sum(p * (-math.log(p) - h) ** 2 for p in row)
        for row, h in zip(rows.tolist(), entropy, strict=True)
    ]
    found = surprise(rows, label)
    assert found.loss == pytest.approx(sum(loss) / 3, rel=1e-12)
    assert found.expected == pytest.approx(sum(entropy) / 3, rel=1e-12)
    expected = (sum(loss) - sum(entropy)) / math.sqrt(sum(variance))
    assert found.z == pytest.approx(expected, rel=1e-12)


def test_damping_is_in_units_of_the_information():
    """Scaling I, J and K together scales the worth's matrices and changes no answer."""
    g = torch.Generator().manual_seed(0)
    root = torch.randn(3, 3, generator=g, dtype=torch.float64)
    information = root @ root.T + torch.eye(3, dtype=torch.float64)
    induced = 0.3 * information + 0.1 * torch.eye(3, dtype=torch.float64)
    size = information.diagonal().mean().item()
    damped = information + 0.2 * size * torch.eye(3, dtype=torch.float64)
    expected = torch.linalg.eigvals(torch.linalg.solve(damped, induced)).real.sort(descending=True)
    for scale in (1.0, 1e-3, 1e6):
        found = worth.Worth.of(scale * information, scale * induced, damping=0.2)
        torch.testing.assert_close(found.gain, expected.values)


def test_errors_of_targets_name_what_came():
    table, log_q = torch.tensor([[0.7, 0.3], [0.5, 0.5]]), torch.zeros(2, 1, 2) - math.log(2)
    target = TableTarget(table)
    with pytest.raises(ValueError, match=r"^short is on meta but target is on cpu"):
        target(torch.zeros(1, dtype=torch.long, device="meta"))
    with pytest.raises(ValueError, match=r"^short must hold ids in \[0, 2\), got 2..2"):
        target(torch.tensor([2]))
    with pytest.raises(ValueError, match=r"^target must have a column for each"):
        TableTarget(torch.ones(2, 1))
    with pytest.raises(ValueError, match=r"^target is on meta but log_q is on cpu"):
        imm.imm_risk(table.to("meta"), log_q)
    with pytest.raises(TypeError, match=r"^target must be a floating-point tensor"):
        imm.imm_risk(table.long(), log_q)
    with pytest.raises(ValueError, match=r"^weight is on meta but logits is on cpu"):
        imm.undo_class_weights(log_q, torch.ones(2, device="meta"))


def test_a_callables_first_answer_is_looked_at_on_every_device(monkeypatch):
    monkeypatch.setattr(checks, "visible", lambda x: False)
    with pytest.raises(ValueError, match=r"target\(short\) must sum to 1"):
        CallableTarget(lambda short: torch.ones(len(short), 2))(torch.tensor([0]))


def test_class_weights_of_one_row_without_a_batch():
    found = imm.undo_class_weights(torch.zeros(2), torch.tensor([1.0, 3.0]))
    torch.testing.assert_close(found.exp(), torch.tensor([0.75, 0.25]))
    assert imm.undo_class_weights(torch.ones(1), torch.ones(1)).tolist() == [0.0]


def test_the_mean_of_two_divergences_is_half_each_by_default():
    p, log_q = torch.tensor([0.5, 0.5]), torch.tensor([0.9, 0.1]).log()
    both = divergences.forward_kl(p, log_q) + divergences.reverse_kl(p, log_q)
    torch.testing.assert_close(divergences.balanced()(p, log_q), both / 2)
    assert divergences.balanced(0) is divergences.reverse_kl
    assert divergences.balanced(1) is divergences.forward_kl


def test_leading_dimensions_have_to_fit():
    log_q = torch.zeros(3, 2, 2).log_softmax(-1)
    with pytest.raises(ValueError, match=r"^target must have leading dimensions"):
        imm.imm_risk(torch.full((2, 2), 0.5), log_q)
    assert imm.imm_risk(torch.full((1, 2), 0.5), log_q).shape == (3,)


def test_the_models_precision_decides():
    log_q = torch.tensor([[0.9, 0.1], [0.5, 0.5]]).log()
    wide = torch.tensor([0.5, 0.5], dtype=torch.float64)
    for function in (imm.imm_risk, imm.noising_risk):
        assert function(wide, log_q, wide.log()).dtype == torch.float32


def test_a_label_that_no_context_allows_has_no_crosstalk():
    log_q = torch.tensor([[0.9, 0.1, 0.0], [0.5, 0.5, 0.0]]).log()
    found = imm.crosstalk(log_q)
    assert found[:, 2].tolist() == [0.0, 0.0]
    torch.testing.assert_close(found[:, 0], torch.tensor([0.9, 0.5]) / 1.4)


def test_surrogates_have_no_second_derivative():
    def surrogate(log_q):
        return imm.MovingAverageIMM(torch.tensor([[0.5, 0.5]]), 1, 2)(log_q, torch.tensor([0]))

    log_q = torch.tensor([[0.9, 0.1]]).log().requires_grad_()
    with pytest.raises(RuntimeError, match="second derivatives"):
        torch.autograd.grad(surrogate(log_q), log_q, create_graph=True)
    (first,) = torch.autograd.grad(surrogate(log_q), log_q)
    transformed = torch.func.grad(lambda x: once(x.sum()))(log_q.detach())
    assert first.tolist() == [[-0.5, -0.5]]
    assert transformed.tolist() == [[1.0, 1.0]]
