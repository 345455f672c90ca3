"""Class weights: a model trained by a weighted cross-entropy speaks of another population."""

import math

import pytest
import torch
from torch.nn import functional as F
from worlds import random_log_q, random_probabilities

import imm_lib as imm

WEIGHT = torch.tensor([0.6, 1.0, 9.0], dtype=torch.float64)


def world():
    """(S, E, Y): the third label is rare."""
    joint = random_probabilities(2 * 4 * 3).view(2, 4, 3) * torch.tensor([5.0, 4.0, 0.5])
    return imm.TabularWorld(joint / joint.sum())


def test_the_minimiser_of_the_weighted_loss_is_the_population_again():
    truth = world()
    logits = torch.zeros(2, 4, 3, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [logits],
        max_iter=2000,
        tolerance_grad=1e-12,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def closure():
        optimiser.zero_grad()
        loss = -(truth.joint * WEIGHT * logits.log_softmax(-1)).sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    found = imm.undo_class_weights(logits.detach(), WEIGHT).exp()
    torch.testing.assert_close(found, truth.conditional, atol=1e-5, rtol=1e-4)
    assert (logits.detach().softmax(-1) - truth.conditional).abs().max() > 0.1


def trained(truth):
    """Logits of the minimiser, up to a constant of each row."""
    return (truth.conditional * WEIGHT).log() + torch.arange(4.0).view(1, 4, 1)


def test_imm_leaves_a_weighted_model_alone():
    """At the minimiser of the weighted loss, the risk has no gradient either; it had one."""
    truth = world()
    short = torch.arange(2).repeat_interleave(4)

    def gradient(answer):
        logits = trained(truth).requires_grad_()
        query = lambda s, e: answer(logits[s, e])  # noqa: E731
        loss = imm.ExactIMM(truth.induced, truth.contexts())(query, short)
        return torch.autograd.grad(loss, logits)[0].abs().max()

    assert gradient(lambda z: imm.undo_class_weights(z, WEIGHT)) < 1e-12
    assert gradient(lambda z: z.log_softmax(-1)) > 0.01


def test_lead_says_no_to_a_useless_target():
    """The target is the share of each label, which every induced model of the population knows."""
    truth = world()
    draws = torch.Generator().manual_seed(0)
    pairs = torch.multinomial(truth.joint.sum(1).flatten(), 4000, True, generator=draws)
    short, label = pairs // 3, pairs % 3
    useless = truth.joint.sum((0, 1)).expand(2, 3).contiguous()

    def lead(answer):
        query = lambda s, e: answer(trained(truth)[s, e])  # noqa: E731
        return imm.premise.lead(query, truth.contexts(), useless, short, label)

    naive = lead(lambda z: z.log_softmax(-1))
    assert naive.ahead > 3 * naive.error  # "go on", said of nothing
    right = lead(lambda z: imm.undo_class_weights(z, WEIGHT))
    assert right.ahead < 0


def test_it_is_the_formula_and_undoes_itself():
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    weight = WEIGHT.float()
    found = imm.undo_class_weights(logits, weight)
    torch.testing.assert_close(found, (logits - weight.log()).log_softmax(-1))
    torch.testing.assert_close(imm.undo_class_weights(found, 1 / weight), logits.log_softmax(-1))
    torch.testing.assert_close(imm.undo_class_weights(logits, 7 * weight), found)
    half = imm.undo_class_weights(logits.bfloat16(), weight.double())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, found, atol=0.05, rtol=0.05)
    # the weighted loss itself keeps weights and logits
    assert F.cross_entropy(logits, torch.tensor([0, 1, 2, 0, 1]), weight).isfinite()


def test_a_weight_too_small_for_the_dtype_of_the_logits():
    logits = torch.tensor([[-math.inf, 0.0, 1.0]])
    weight = torch.tensor([1e-60, 1.0, 1.0], dtype=torch.float64)
    found = imm.undo_class_weights(logits, weight)
    torch.testing.assert_close(found, logits.log_softmax(-1))
    assert imm.undo_class_weights(torch.zeros(1, 3), weight)[0, 0] == 0.0  # that of the rare class


@pytest.mark.parametrize(
    "logits, weight, error, words",
    [
        (random_log_q(4, 3), WEIGHT[:2], ValueError, r"weight must be \(3,\)"),
        (random_log_q(4, 3), WEIGHT.view(1, 3), ValueError, r"weight must be \(3,\)"),
        (random_log_q(4, 3), WEIGHT - 0.6, ValueError, "finite and above 0"),
        (random_log_q(4, 3), WEIGHT * math.inf, ValueError, "finite and above 0"),
        (random_log_q(4, 3), [1.0, 2.0, 3.0], TypeError, "weight must be a torch.Tensor"),
        (random_log_q(4, 3), torch.ones(3).long(), TypeError, "weight must be a floating"),
        (torch.ones(4, 3).long(), WEIGHT, TypeError, "logits must be a floating"),
        (random_log_q(4, 3), WEIGHT.to("meta"), ValueError, "weight is on meta"),
        (torch.tensor(1.0), WEIGHT, ValueError, r"logits must be \(..., Y\)"),
        (torch.full((1, 3), math.nan), WEIGHT, ValueError, "logits must have a finite largest"),
        (torch.full((1, 3), -math.inf), WEIGHT, ValueError, "logits must have a finite largest"),
        (
            torch.tensor([[0.0, 1.0, 2.0], [-math.inf] * 3]),
            WEIGHT,
            ValueError,
            "logits must have a finite largest",
        ),
        (torch.full((1, 3), math.inf), WEIGHT, ValueError, "logits must have a finite largest"),
    ],
)
def test_bad_input(logits, weight, error, words):
    with pytest.raises(error, match=words):
        imm.undo_class_weights(logits, weight)
