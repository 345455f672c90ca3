"""Real-valued targets and coarser labels: estimators against each other, theory, and bad input."""

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import imm_lib as imm
from imm_lib.coarse import coarsen
from imm_lib.means import ExactMean, MovingAverageMean, SampledMean, induced_mean, linear_worth


def setting(dtype=torch.float64, outputs=2):
    generator = torch.Generator().manual_seed(0)
    short = torch.tensor([0, 0, 1, 1, 1, 2])
    values = torch.randn(6, outputs, generator=generator, dtype=dtype).requires_grad_()
    target = torch.randn(3, outputs, generator=generator, dtype=dtype)
    return short, values, target


def by_hand(short, values, target):
    risks = [
        (target[s] - values[short == s].mean(0)).square().sum() / 2 * (short == s).sum()
        for s in range(3)
    ]
    return sum(risks) / len(short)


def test_the_exact_risk_and_the_table_are_the_sum_by_hand():
    short, values, target = setting()
    exact = ExactMean(target, imm.GroupedContexts(short))(lambda s, e: values[e], short)
    expected = by_hand(short, values, target)
    torch.testing.assert_close(exact, expected)
    average = MovingAverageMean(target, 3, 2).double()
    surrogate = average(values, short)
    torch.testing.assert_close(average.risk, expected.detach())
    grads = [torch.autograd.grad(loss, values)[0] for loss in (exact, surrogate)]
    torch.testing.assert_close(*grads)


def test_a_perfect_model_has_no_risk_and_no_gradient():
    short, values, _ = setting()
    target = torch.stack([values[short == s].mean(0) for s in range(3)]).detach()
    exact = ExactMean(target, imm.GroupedContexts(short))(lambda s, e: values[e], short)
    assert exact.item() == pytest.approx(0, abs=1e-30)
    (grad,) = torch.autograd.grad(exact, values)
    assert grad.abs().max() < 1e-15


def test_samples_have_no_bias_in_value_and_gradient():
    short, values, target = setting()
    contexts = imm.GroupedContexts(short)
    sampled = SampledMean(target, contexts, 2, torch.Generator().manual_seed(1))
    exact = by_hand(short, values, target)
    (wanted,) = torch.autograd.grad(exact, values)
    draws = [sampled(lambda s, e: values[e], short) for _ in range(6000)]
    risks = torch.stack(draws)
    assert (risks.mean() - exact).abs() < 4 * risks.std() / len(risks) ** 0.5
    (found,) = torch.autograd.grad(risks.mean(), values)
    assert (found - wanted).norm() < 0.05 * wanted.norm()
    assert risks.min() < 0


def test_moments_are_columns():
    values = torch.tensor([1.0, 3.0, 3.0])
    columns = torch.stack([values, values**2], 1)
    mean, second = induced_mean(columns)
    assert second - mean**2 == pytest.approx(values.var(correction=0).item(), abs=1e-6)


def test_a_table_moves_by_its_momentum_and_stands_still_in_eval_mode():
    average = MovingAverageMean(torch.zeros(2, 1), 2, momentum=0.25)
    average(torch.tensor([[4.0]]), torch.tensor([1]))
    average(torch.tensor([[0.0]]), torch.tensor([1]))
    assert average.table[1].tolist() == [3.0] and average.visited.tolist() == [False, True]
    average.eval()(torch.tensor([[9.0]]), torch.tensor([1]))
    assert average.table[1].item() == 3.0
    with pytest.raises(ValueError, match="never visited in train mode: 0"):
        average(torch.tensor([[9.0]]), torch.tensor([0]))
    other = MovingAverageMean(torch.zeros(2, 1), 2)
    other.load_state_dict(average.state_dict())
    torch.testing.assert_close(other.table, average.table, rtol=0, atol=0, equal_nan=True)


def test_the_worth_of_a_mean_is_that_of_a_simulation():
    generator = torch.Generator().manual_seed(0)
    theta, noise, n, runs = torch.tensor([1.0, -1.0, 1.0]).double(), 1.5, 200, 600
    levels = torch.tensor([-1.0, 0.0, 1.0]).double()

    def draw(count):
        s = levels[torch.randint(3, count, generator=generator)]
        e = torch.randn(*count, generator=generator, dtype=torch.float64) + 0.5 * s
        x = torch.stack([torch.ones_like(s), s, e], -1)
        return x, torch.stack([torch.ones_like(s), s, 0.5 * s], -1)

    x, averaged = draw((200_000,))
    worth = linear_worth(x, averaged, theta, noise)
    x, averaged = draw((runs, n))
    y = x @ theta + noise * torch.randn(runs, n, generator=generator, dtype=torch.float64)
    same = (x[..., 1].unsqueeze(2) == x[..., 1].unsqueeze(1)).double()
    counted = same / same.sum(2, keepdim=True) @ x  # averages over the run's own points
    wide = draw((100_000,))[0]
    for lam in (0.0, 1.0, 4.0):
        gram = x.mT @ x + lam * counted.mT @ counted
        right = x.mT @ y.unsqueeze(2) + lam * counted.mT @ (averaged @ theta).unsqueeze(2)
        error = torch.linalg.solve(gram, right).squeeze(2) - theta
        excess = (error @ wide.T).square().mean(1) / (2 * noise**2)
        assert worth.excess_risk(lam, n) == pytest.approx(excess.mean().item(), rel=0.1)
    assert worth.excess_risk(1.0, n) < worth.excess_risk(0.0, n)


@given(st.integers(2, 5), st.integers(1, 3), st.integers(0, 100))
def test_coarsening_merges_probabilities(labels, coarse, seed):
    generator = torch.Generator().manual_seed(seed)
    coarse = min(coarse, labels)
    mapping = torch.cat(
        [torch.arange(coarse), torch.randint(coarse, (labels - coarse,), generator=generator)]
    )
    log_q = (5 * torch.randn(3, 4, labels, generator=generator, dtype=torch.float64)).log_softmax(
        -1
    )
    expected = torch.zeros(3, 4, coarse, dtype=torch.float64).index_add_(-1, mapping, log_q.exp())
    torch.testing.assert_close(coarsen(log_q, mapping).exp(), expected)
    induced = imm.induce(coarsen(log_q, mapping))  # merging and averaging commute
    torch.testing.assert_close(induced, coarsen(imm.induce(log_q), mapping))


def test_unlikely_labels_survive_and_impossible_ones_have_no_nan():
    log_q = torch.tensor([[-200.0, -201.0, 0.0]], requires_grad=True)
    found = coarsen(log_q, torch.tensor([1, 1, 0]))
    assert found[0, 1].item() == pytest.approx(-200 + 0.3133, abs=1e-3)
    none = torch.tensor([[0.0, -torch.inf, -torch.inf]], requires_grad=True)
    found = coarsen(none, torch.tensor([0, 1, 1]))
    (grad,) = torch.autograd.grad(found[0, 0] - found[0, 1].exp(), none)
    assert found[0, 1] == -torch.inf and not grad.isnan().any()


def test_every_estimator_takes_coarser_labels():
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(6, 5, generator=generator, dtype=torch.float64).requires_grad_()
    short, labels = torch.tensor([0, 0, 1, 1, 1, 1]), torch.tensor([0, 1, 1, 1, 2])
    target = torch.tensor([[0.2, 0.5, 0.3], [0.6, 0.3, 0.1]], dtype=torch.float64)
    log_q = lambda: coarsen(logits.log_softmax(1), labels)  # noqa: E731
    contexts = imm.GroupedContexts(short)

    def query(asked, extended):
        return log_q()[extended]

    fine = imm.ExactIMM(target, contexts)(query, short)
    (wanted,) = torch.autograd.grad(fine, logits)
    average = imm.MovingAverageIMM(target, 2, 3, momentum=1.0).double()
    serialized = imm.SerializedIMM(target, 2, 3).double()
    serialized.refresh([(log_q().detach(), short)])
    sampled = imm.SampledIMM(target, contexts, 4000, generator=generator)
    for loss, room in (
        (average(log_q(), short), 1e-12),
        (serialized(log_q(), short, log_q().detach()), 1e-12),
        (sampled(query, short), 0.05),
    ):
        (found,) = torch.autograd.grad(loss, logits)
        assert (found - wanted).norm() <= room * wanted.norm() + 1e-12
    for other in (
        imm.ReverseKD(target)(log_q(), short),
        imm.SampledNoising(target, contexts, 3, generator)(query, short),
    ):
        assert other.isfinite()
    mixed = imm.Interpolation(target, 0.3)(log_q(), short)
    torch.testing.assert_close(mixed.exp().sum(1), torch.ones(6, dtype=torch.float64))


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (torch.tensor([0, 1]), ValueError, r"must be \(3,\), to map each label, leaving none out"),
        (torch.tensor([0, 2, 2]), ValueError, "got none for 1"),
        (torch.tensor([0, -1, 1]), ValueError, "labels"),
        (torch.tensor([0.0, 1.0, 1.0]), TypeError, "labels"),
    ],
)
def test_a_map_that_leaves_a_label_out_is_refused(labels, error, message):
    with pytest.raises(error, match=message):
        coarsen(torch.full((2, 3), 1 / 3).log(), labels)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s, v, t: induced_mean(v[0]), r"values must be \(..., k, D\)"),
        (lambda s, v, t: induced_mean(v.detach() / 0), "must be finite"),
        (lambda s, v, t: induced_mean(v, torch.ones(2) / 2), "weight must be"),
        (lambda s, v, t: SampledMean(t, imm.GroupedContexts(s), 1), "k must be at least 2"),
        (
            lambda s, v, t: ExactMean(t[0], imm.GroupedContexts(s)),
            r"target must be \(S, D\); one output is",
        ),
        (
            lambda s, v, t: ExactMean(t, imm.GroupedContexts(s))(lambda a, e: v[e, :1], s),
            "with the target's D outputs",
        ),
        (
            lambda s, v, t: ExactMean(lambda a: t[:1], imm.GroupedContexts(s))(
                lambda a, e: v[e], s
            ),
            r"target\(short\) must be \(3, D\)",
        ),
        (lambda s, v, t: ExactMean(t, imm.GroupedContexts(s))(None, s[:0]), "non-empty batch"),
        (lambda s, v, t: MovingAverageMean(t, 3, 2)(v[:2], s), r"values must be \(6, 2\)"),
        (lambda s, v, t: MovingAverageMean(t[:, :1], 3, 2)(v, s), "as values have outputs"),
        (
            lambda s, v, t: ExactMean(v.detach(), imm.GroupedContexts(s)),
            "one row for each of the 3",
        ),
        (lambda s, v, t: SampledMean(t[:2], imm.GroupedContexts(s)), "one row for each of the 3"),
        (lambda s, v, t: MovingAverageMean(v.detach(), 3, 2), "one row for each of the 3"),
        (lambda s, v, t: ExactMean(t, imm.KernelContexts(v[:, 0].detach())), "must be a function"),
        (lambda s, v, t: linear_worth(v, v[:2], v[0], 1.0), "averaged must be"),
        (lambda s, v, t: linear_worth(v, v, v[:, 0], 1.0), "theta must be"),
        (lambda s, v, t: linear_worth(v, v, v[0], 0.0), "noise"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(*setting())


def test_a_regression_target_for_a_classifier_is_refused():
    short, values, target = setting()
    with pytest.raises(ValueError, match="target must not be negative"):
        imm.ExactIMM(target, imm.GroupedContexts(short))
    with pytest.raises(ValueError, match="target"):
        imm.ExactIMM(lambda s: target[s], imm.GroupedContexts(short))(
            lambda s, e: values[e].log_softmax(1), short
        )


def test_a_regressor_is_no_target_of_probabilities():
    contexts = imm.GroupedContexts(torch.tensor([0, 1]))
    means = ExactMean(torch.tensor([[-0.7, 2.0], [0.3, 5.0]]), contexts).target
    moving = imm.MovingAverageIMM(means, 2, 2)
    with pytest.raises(ValueError, match=r"target\(short\) must not be negative"):
        moving(torch.zeros(2, 2).log_softmax(1), torch.tensor([0, 1]))
    for kind in (imm.ExactIMM, imm.SampledIMM):
        estimator = kind(means, contexts)
        with pytest.raises(ValueError, match=r"target\(short\) must not be negative"):
            estimator(lambda s, e: torch.zeros(len(e), 2).log_softmax(1), torch.tensor([0, 1]))


@pytest.mark.parametrize("kind", [ExactMean, SampledMean])
def test_an_estimator_of_means_is_copied_without_the_graph_of_its_table(kind):
    table = torch.randn(500, 20, requires_grad=True) * 2
    contexts = imm.GroupedContexts(torch.arange(500))
    copied = copy.deepcopy(kind(table, contexts))
    assert not copied.target.table.requires_grad
    assert len(pickle.dumps(kind(table.detach(), contexts).target)) < 1.5 * table.nbytes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_merged_in_float32(dtype):
    log_q = torch.randn(2, 1000).log_softmax(-1).to(dtype)
    mapping = torch.arange(1000) % 2
    torch.testing.assert_close(coarsen(log_q, mapping), coarsen(log_q.float(), mapping))
