"""Memory of a sampled term's step, in tensors of the size of its log-probabilities."""

import math

import pytest
import torch

import imm_lib as imm
from imm_lib.experiments.timing import peak_bytes
from imm_lib.sums import log_sum_exp, log_sum_exp_

SHORT, K, LABELS = 64, 4, 2000


def units(loss):
    """Peak of a forward and a backward pass, in tensors of one number for each pair and label."""
    features = torch.randn(SHORT * K, 4, generator=torch.Generator().manual_seed(0))
    model = torch.nn.Linear(4, LABELS)

    def work():
        model.zero_grad()
        loss(lambda _, extended: model(features[extended]).log_softmax(-1)).backward()

    return peak_bytes(work) / (SHORT * K * LABELS * 4)


def test_a_joint_step_holds_less_than_four_tensors_of_its_log_probabilities():
    target = torch.ones(SHORT, LABELS) / LABELS
    contexts = imm.GroupedContexts(torch.arange(SHORT * K) % SHORT)
    short, pairs = torch.arange(SHORT), torch.arange(SHORT * K)
    generator = torch.Generator().manual_seed(0)
    plain = units(lambda query: -query(short, pairs)[:, 0].mean())
    assert plain == pytest.approx(3, abs=0.05)
    terms = (
        imm.SampledIMM(target, contexts, K, generator=generator),
        imm.SampledIMM(target, contexts, K, generator=generator, sequential=True),
    )
    joint, sequential = (units(lambda query, t=t: t(query, short)) for t in terms)
    assert sequential < joint < 4
    assert (
        units(lambda query: imm.imm_risk(target, query(short, pairs).unflatten(0, (-1, K))).mean())
        < 4
    )


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_overwritten_changes_no_value_and_no_derivative(overwrite):
    x = torch.randn(3, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x[0, :, 1], x[1, 2, 0] = -math.inf, -math.inf
    x.requires_grad_()
    found = log_sum_exp_(x + 0.0) if overwrite else log_sum_exp(x)
    expected = x.detach().exp().sum(-2).log()
    assert torch.equal(found.isinf(), expected.isinf())
    torch.testing.assert_close(found, expected)
    (first,) = torch.autograd.grad(found[found.isfinite()].sum(), x, create_graph=True)
    shares = x.detach().softmax(-2).nan_to_num(0.0)
    torch.testing.assert_close(first, shares)
    (second,) = torch.autograd.grad((first * first.detach()).sum(), x)
    torch.testing.assert_close(second, shares * (shares - shares.square().sum(-2, keepdim=True)))
    assert torch.autograd.gradgradcheck(
        lambda y: log_sum_exp_(y + 0.0) if overwrite else log_sum_exp(y),
        torch.randn(2, 3, dtype=torch.float64, requires_grad=True),
    )
