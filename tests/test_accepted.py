"""What is accepted within a tolerance is normalised; what only looks like probabilities is refused;
tensors of inference mode, tables of the wrong size and very many points.
"""

import math

import pytest
import torch
from worlds import PairModel, gradients, random_log_q, random_probabilities

import imm_lib as imm
from imm_lib import distributions
from imm_lib.divergences import forward_kl
from imm_lib.targets.table import TableTarget, as_target
from imm_lib.worth import informations

SHORT = torch.tensor([0, 1, 0, 2])


def near(*shape, factor=0.9999, **options):
    """Rows that sum to ``factor``, a table printed with too few digits."""
    return random_probabilities(*shape, **options) * factor


# normalised


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("labels", [2, 5, 50_257])
def test_rows_of_a_target_sum_to_1(dtype, labels):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(3, labels, generator=generator).softmax(-1).to(dtype)
    if dtype in (torch.float32, torch.float64):
        rows *= 1 + 9e-5
    answers = [as_target(rows), as_target(lambda short: rows[short])]
    for target in answers:
        found = target(SHORT)
        wide = torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype
        assert found.dtype == wide
        assert (found.sum(-1, dtype=torch.float64) - 1).abs().max() <= 2e-6
        # a perfect match is one, and nothing is below it
        perfect = (rows.double() / rows.double().sum(-1, keepdim=True))[SHORT]
        value = forward_kl(found.double(), perfect.log())
        assert value.abs().max() < 1e-6
        assert (
            imm.imm_risk(rows[SHORT], perfect.log().unsqueeze(1))
            .sub(torch.special.entr(perfect).sum(-1))
            .abs()
            .max()
            < 1e-5
        )


def test_a_table_that_sums_to_1_is_not_copied():
    table = random_probabilities(4, 3, dtype=torch.float32)
    assert TableTarget(table).table.data_ptr() == table.data_ptr()
    half = table.bfloat16()
    assert TableTarget(half).table.dtype == torch.bfloat16  # no second table in memory


def test_beliefs_worlds_and_weights_are_normalised():
    belief = imm.BeliefContexts(near(2, 3)).belief
    torch.testing.assert_close(belief.sum(-1), torch.ones(2, dtype=torch.float64))
    half = imm.BeliefContexts(random_probabilities(2, 3).bfloat16())
    assert half.belief.dtype == torch.float32
    torch.testing.assert_close(half.log_weights(SHORT[:2]).logsumexp(-1), torch.zeros(2))
    assert imm.TabularWorld(near(12).view(2, 2, 3)).joint.sum().item() == pytest.approx(1)
    log_q, log_w = random_log_q(2, 3, 5), random_log_q(2, 3)
    expected = imm.induce(log_q, log_w)
    for off in (9e-4, -9e-4, 1e-7):
        found = imm.induce(log_q, log_w + off)
        torch.testing.assert_close(found, expected)
        assert found.logsumexp(-1).abs().max() < 1e-12
    target = random_probabilities(2, 5)
    for function in (imm.imm_risk, imm.noising_risk):
        torch.testing.assert_close(
            function(target * 1.0001, log_q, log_w + 9e-4), function(target, log_q, log_w)
        )
    torch.testing.assert_close(imm.crosstalk(log_q, log_w + 9e-4), imm.crosstalk(log_q, log_w))
    out = torch.tensor([[0.5, 0.5, 0.0]], dtype=torch.float64).log()
    torch.testing.assert_close(imm.induce(log_q[:1], out + 5e-4), imm.induce(log_q[:1], out))


def test_normalising_leaves_gradients_by_a_target_or_weights_alone():
    log_q, log_w = random_log_q(3, 5), random_log_q(3).requires_grad_()
    target = random_probabilities(5).requires_grad_()
    found = torch.autograd.grad(imm.imm_risk(target, log_q, log_w), (target, log_w))
    log_induced = (log_q + log_w.unsqueeze(-1)).logsumexp(-2)
    expected = torch.autograd.grad(-(target * log_induced).sum(), (target, log_w))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("factor", [1.01, 0.98])
def test_what_is_off_by_more_is_refused(factor):
    rows = near(4, 3, factor=factor)
    contexts = imm.BeliefContexts(random_probabilities(4, 4))
    log_q = random_log_q(4, 3)
    for name, call in {
        "target": lambda: imm.ReverseKD(rows),
        r"target\(short\)": lambda: imm.ReverseKD(lambda s: rows[s])(log_q, SHORT),
        "belief": lambda: imm.BeliefContexts(rows),
        "target ": lambda: imm.imm_risk(rows, log_q.unsqueeze(1)),
        "log_w": lambda: imm.induce(log_q, random_log_q(4) + math.log(factor)),
        "joint": lambda: imm.TabularWorld(near(12, factor=factor).view(2, 2, 3)),
        "weight": lambda: informations(
            PairModel(4, 4, 3),
            [torch.zeros(1, requires_grad=True)],
            contexts,
            SHORT,
            SHORT,
            near(4, factor=factor),
        ),
    }.items():
        with pytest.raises(ValueError, match=f"{name}.*(sum to 1|normalised)"):
            call()


# scores that are no log-probabilities


def scores():
    z = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return {
        "logsigmoid": torch.nn.functional.logsigmoid(z),
        "minus squared distances": -((z - 3) ** 2),
        "minus losses": -z.abs(),
        "log-probabilities of other labels": random_log_q(4, 6)[:, :3],
        "all excluded": torch.full((4, 3), -math.inf, dtype=torch.float64),
    }


@pytest.mark.parametrize("name", scores())
def test_scores_are_refused_everywhere(name):
    bad, table = scores()[name], random_probabilities(4, 3)
    contexts = imm.BeliefContexts(random_probabilities(4, 4))
    average = imm.MovingAverageIMM(table, 4, 3).double()
    serialized = imm.SerializedIMM(table, 4, 3).double()
    for call in (
        lambda: imm.ExactIMM(table, contexts)(lambda s, e: bad[e], SHORT),
        lambda: imm.SampledIMM(table, contexts)(lambda s, e: bad[e], SHORT),
        lambda: imm.SampledIMM(table, contexts, sequential=True)(lambda s, e: bad[e], SHORT),
        lambda: imm.SampledNoising(table, contexts)(lambda s, e: bad[e], SHORT),
        lambda: average(bad, SHORT),
        lambda: serialized.refresh([(bad, SHORT)]),
        lambda: imm.ReverseKD(table)(bad, SHORT),
        lambda: imm.Interpolation(table, 0.5)(bad, SHORT),
        lambda: imm.imm_risk(table[0], bad),
        lambda: imm.noising_risk(table[0], bad),
    ):
        with pytest.raises(ValueError, match=r"log-probabilities, which sum to 1 over labels"):
            call()
    assert average.table.isnan().all() and not average.visited.any()


def test_some_labels_alone_can_be_induced():
    """Label by label: what is said of one label needs no others."""
    log_q = random_log_q(4, 5)
    torch.testing.assert_close(imm.induce(log_q[:, 1:3]), imm.induce(log_q)[1:3])
    torch.testing.assert_close(imm.crosstalk(log_q[:, :1]), imm.crosstalk(log_q)[:, :1])


def test_one_bad_row_of_a_small_tensor_is_found():
    log_q = random_log_q(1000, 3)
    log_q[717] -= 0.5
    with pytest.raises(ValueError, match="sum to 1 over labels"):
        distributions.log_distributions("log_q", log_q, "N", "Y")


def test_a_large_tensor_is_looked_at_in_places():
    rows = 2 * distributions.LOOK // 1000
    log_q = torch.full((rows, 1000), -math.log(1000))
    assert distributions.log_distributions("log_q", log_q, "N", "Y") is log_q
    with pytest.raises(ValueError, match="sum to 1 over labels"):
        distributions.log_distributions("log_q", log_q - 1, "N", "Y")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("labels", [2, 1000, 50_257])
def test_rounded_log_probabilities_pass(dtype, labels):
    for log_q in (torch.zeros(3, labels), torch.randn(3, labels)):
        half = log_q.log_softmax(-1).to(dtype)
        for value in (half, half.float(), half.double()):
            assert distributions.log_distributions("log_q", value, "N", "Y") is value


# inference mode


def teachers():
    net = torch.nn.Linear(2, 3)

    @torch.inference_mode()
    def decorated(short):
        return net(torch.ones(len(short), 2)).softmax(-1)

    with torch.inference_mode():
        table = torch.randn(4, 3).softmax(-1)
    return {
        "callable": decorated,
        "table": table,
        "half": table.bfloat16(),
        "rows": lambda s: table[s],
    }


@pytest.mark.parametrize("kind", teachers())
def test_a_teacher_in_inference_mode(kind):
    teacher, net = teachers()[kind], PairModel(4, 4, 3)
    with torch.inference_mode():
        belief, data, values = torch.full((4, 4), 0.25), torch.arange(4), torch.arange(4.0)
    log_q = lambda: net(SHORT, SHORT)  # noqa: E731
    for contexts in (imm.BeliefContexts(belief), imm.GroupedContexts(data, 4)):
        for estimator in (
            imm.ExactIMM(teacher, contexts),
            imm.SampledIMM(teacher, contexts),
            imm.SampledIMM(teacher, contexts, sequential=True),
            imm.SampledNoising(teacher, contexts),
            imm.ExactIMM(teacher, contexts, divergence="Jensen-Shannon"),
        ):
            with torch.inference_mode():
                short = SHORT.clone()
            for ids in (SHORT, short):
                assert gradients(estimator(net, ids), net)[0].abs().sum() > 0
    assert gradients(imm.ReverseKD(teacher)(log_q(), SHORT), net)[0].abs().sum() > 0
    average = imm.MovingAverageIMM(teacher, 4, 3).double()
    assert gradients(average(log_q(), SHORT), net)[0].abs().sum() > 0
    mixed = imm.Interpolation(teacher, 0.5)(log_q(), SHORT)
    assert gradients(-mixed[:, 0].sum(), net)[0].abs().sum() > 0
    kernel = imm.KernelContexts(values)
    loss = imm.ExactIMM(lambda s: torch.full((len(s), 3), 1 / 3), kernel)(
        lambda s, e: net(e, e), torch.tensor([0.5])
    )
    assert gradients(loss, net)[1].abs().sum() > 0


def test_pure_functions_take_tensors_of_inference_mode():
    with torch.inference_mode():
        target, log_w = random_probabilities(3), random_log_q(4)
    log_q = random_log_q(4, 3).requires_grad_()
    for function in (imm.imm_risk, imm.noising_risk):
        (gradient,) = torch.autograd.grad(function(target, log_q, log_w), log_q)
        assert gradient.abs().sum() > 0
    assert torch.autograd.grad(imm.induce(log_q, log_w).sum(), log_q)[0].abs().sum() > 0


# a table that is none


def test_a_table_has_one_row_for_each_short_context():
    groups = torch.randint(4, (30,), generator=torch.Generator().manual_seed(0))
    grouped = imm.GroupedContexts(groups, num_short=4)
    answers = random_probabilities(30, 3)  # of the data points, not of the groups
    beliefs = imm.BeliefContexts(random_probabilities(4, 30))
    for contexts in (grouped, beliefs):
        for build in (imm.ExactIMM, imm.SampledIMM, imm.SampledNoising):
            for rows in (answers, answers[:3], TableTarget(answers)):
                with pytest.raises(ValueError, match=r"one row for each of the 4 short contexts"):
                    build(rows, contexts)
            build(answers[:4], contexts)
            build(lambda short: answers[short], contexts)
    kernel = imm.KernelContexts(torch.rand(30))
    for build in (imm.ExactIMM, imm.SampledIMM, imm.SampledNoising):
        with pytest.raises(ValueError, match=r"function .* short contexts are continuous"):
            build(answers, kernel)
    label = torch.zeros(30, dtype=torch.long)
    net = PairModel(4, 30, 3)
    with pytest.raises(ValueError, match="one row for each of the 4 short contexts"):
        imm.premise.lead(net, grouped, answers, groups, label)


def test_contexts_of_ones_own_take_any_table():
    class Own:
        def support(self, short):
            return torch.arange(len(short)), short, torch.zeros(len(short))

        def sample(self, short, k, generator=None):
            return short.unsqueeze(1).expand(-1, k)

    assert imm.ExactIMM(random_probabilities(9, 3), Own())(PairModel(4, 4, 3), SHORT) > 0


def test_one_column_is_no_target():
    positive = torch.ones(4, 1)
    contexts = imm.BeliefContexts(random_probabilities(4, 4))
    for call in (
        lambda: imm.ExactIMM(positive, contexts),
        lambda: imm.ReverseKD(positive),
        lambda: imm.MovingAverageIMM(positive, 4, 1),
        lambda: imm.ExactIMM(lambda s: positive[s], contexts)(PairModel(4, 4, 1), SHORT),
    ):
        with pytest.raises(ValueError, match=r"at least two labels.*torch.stack"):
            call()


@pytest.mark.parametrize("rows", [torch.full((2, 3), 1 / 3), torch.full((9, 3), 1 / 3)])
def test_a_callable_of_another_number_of_rows(rows):
    with pytest.raises(ValueError, match=r"target\(short\) must be \(3, Y\)"):
        imm.ExactIMM(lambda s: rows, imm.GroupedContexts(SHORT))(PairModel(4, 4, 3), SHORT)


# very many points


def test_kernels_and_beliefs_beyond_two_to_the_24_points():
    points = 2**24 + 3
    values = torch.full((points,), 1e9)
    values[-2:] = 0.0
    draws = torch.Generator().manual_seed(0)
    found = imm.KernelContexts(values).sample(torch.zeros(1), 64, draws)
    assert set(found.flatten().tolist()) == {points - 2, points - 1}
    belief = torch.zeros(1, points)
    belief[0, [5, points - 1]] = 0.5
    found = imm.BeliefContexts(belief).sample(torch.zeros(1).long(), 64, draws)
    assert set(found.flatten().tolist()) == {5, points - 1}


def test_what_has_no_weight_is_never_drawn():
    belief = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0], [1.0, 0.0, 0.0, 0.0, 0.0]])
    contexts = imm.BeliefContexts(belief)
    found = contexts.sample(torch.tensor([0, 1]), 20_000, torch.Generator().manual_seed(0))
    assert found.shape == (2, 20_000) and found.dtype == torch.long
    assert set(found[0].tolist()) == {1, 3} and set(found[1].tolist()) == {0}
    assert (found[0] == 3).double().mean().item() == pytest.approx(0.75, abs=0.01)


def test_the_ends_of_the_uniform_draw(monkeypatch):
    contexts = imm.BeliefContexts(torch.tensor([[0.0, 0.3, 0.7, 0.0]]))
    for u, expected in ((0.0, 1), (1 - 2**-53, 2), (0.29, 1), (0.31, 2)):
        monkeypatch.setattr(
            torch, "rand", lambda *shape, u=u, **options: torch.full(shape, u, dtype=torch.float64)
        )
        assert contexts.sample(torch.tensor([0]), 1).item() == expected


# ids of any integer dtype


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16, torch.uint64]
)
def test_ids_of_any_dtype_look_up_what_they_name(dtype):
    """An index of uint8 is a mask, whose single row would stand for every data point."""
    short, label, net = torch.tensor([0, 1]), torch.tensor([1, 0]), PairModel(2, 2, 3)
    contexts, rows = imm.GroupedContexts(short), random_probabilities(2, 3)
    target = lambda short: rows[short]  # noqa: E731

    def everything(kind):
        own, answers = short.to(kind), random_log_q(2, 3)
        lead = imm.premise.lead(net, contexts, target, own, label.to(kind))
        parameters = [net.short, net.extended]
        uses = imm.worth.compare(
            net, parameters, contexts, own, own, target, (own, label.to(kind)), damping=1.0
        )
        return [
            imm.ExactIMM(target, contexts)(net, own),
            imm.SampledIMM(target, contexts, k=1)(net, own),
            imm.SampledNoising(target, contexts, k=1)(net, own),
            imm.ReverseKD(target)(answers, own),
            imm.Interpolation(target, 0.5)(answers, own),
            imm.MovingAverageIMM(target, 2, 3).double()(answers, own),
            torch.tensor([lead.ahead, uses.risk("IMM", 0.5)]),
        ]

    for found, expected in zip(everything(dtype), everything(torch.int64), strict=True):
        torch.testing.assert_close(found, expected)
