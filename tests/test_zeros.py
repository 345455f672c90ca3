"""Divergences where target, induced model or both are 0 or tiny: values in closed form, gradients
that are numbers, in every estimator.
"""

import itertools
import math
import warnings

import pytest
import torch

import imm_lib as imm
from imm_lib import transport
from imm_lib.divergences import (
    NAMED,
    alpha,
    balanced,
    cauchy_schwarz,
    forward_kl,
    jensen_shannon,
    plackett_luce,
    pull,
    reverse_kl,
    sinkhorn,
    squared_hellinger,
    total_variation,
)

COST = (torch.arange(4.0).unsqueeze(1) - torch.arange(4.0)).abs()
ORDERS = (-1.0, -0.5, 1e-4, 0.3, 0.5, 0.8, 1 - 1e-4, 1.5, 2.0, 3.0)
ALL = {
    **NAMED,
    **{f"alpha {order}": alpha(order) for order in ORDERS},
    "balanced 0": balanced(0.0),
    "balanced 1": balanced(1.0),
    "sinkhorn": sinkhorn(COST, 0.5),
}
DTYPES = (torch.float32, torch.float64)
TINY = math.exp(-120)
# the first two labels have nearly all; the last two are 0 or tiny on either side, or both
SMALL = (0.0, TINY, 1e-3)
LOW = (-math.inf, -1e9, -120.0, math.log(2e-3))


def edge_rows(dtype):
    """Every combination of the last two labels' target and log Q, with ordinary others."""
    targets, models = [], []
    for (p1, p2), (q1, q2) in itertools.product(
        itertools.product(SMALL, repeat=2), itertools.product(LOW, repeat=2)
    ):
        targets.append([0.6 * (1 - p1 - p2), 0.4 * (1 - p1 - p2), p1, p2])
        left = 1 - math.exp(q1) - math.exp(q2)
        models.append([math.log(0.7 * left), math.log(0.3 * left), q1, q2])
    return torch.tensor(targets, dtype=dtype), torch.tensor(models, dtype=dtype)


def surely_wrong(dtype):
    """One-hot targets, and models that give nearly all to another label."""
    target = torch.tensor([[1.0, 0.0, 0.0, 0.0]] * 3, dtype=dtype)
    wrong = [[-120.0, 0.0, -130.0, -math.inf], [-90.0, 0.0, -120.0, -120.0]]
    return target, torch.tensor([*wrong, [-math.inf, 0.0, -120.0, -math.inf]], dtype=dtype)


@pytest.mark.parametrize("rows", [edge_rows, surely_wrong])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ALL)
def test_a_finite_value_has_a_finite_gradient(name, dtype, rows):
    target, log_q = rows(dtype)
    value = ALL[name](target, log_q)
    assert not value.isnan().any()
    assert (value > -1e-6).all()
    gradient = pull(ALL[name], target, log_q)
    assert not gradient.isnan().any()
    assert gradient[value.isfinite()].isfinite().all()


@pytest.mark.parametrize("name", [name for name in ALL if name != "sinkhorn"])
def test_a_row_has_its_own_value_beside_any_other(name):
    both = zip(edge_rows(torch.float32), surely_wrong(torch.float32), strict=True)
    target, log_q = (torch.cat(rows) for rows in both)
    together = ALL[name](target, log_q)
    alone = torch.stack([ALL[name](p, q) for p, q in zip(target, log_q, strict=True)])
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("name", [name for name in ALL if name != "sinkhorn"])
def test_float32_is_float64(name):
    target, log_q = edge_rows(torch.float64)
    # labels of no probability in float32: left out in both, so that the formulas are the same
    target = target.masked_fill(target < 1e-30, 0.0)
    log_q = log_q.masked_fill(log_q < -100, -math.inf)
    for function in (ALL[name], lambda p, q: pull(ALL[name], p, q)):
        expected = function(target, log_q)
        found = function(target.float(), log_q.float()).double()
        # the orders next to a limit divide by 1e-4
        torch.testing.assert_close(
            found, expected, rtol=2e-5, atol=2e-6 if "1e-4" not in name else 1e-3
        )


def by_definition(name, p, q):
    """Python's arithmetic on one row of positive probabilities."""
    pairs = [(a, b) for a, b in zip(p, q, strict=True)]
    middle = [(a + b) / 2 for a, b in pairs]

    def kl(x, y):
        return math.fsum(a * math.log(a / b) for a, b in zip(x, y, strict=True))

    return {
        "forward": lambda: kl(p, q),
        "reverse": lambda: kl(q, p),
        "js": lambda: (kl(p, middle) + kl(q, middle)) / 2,
        "tv": lambda: math.fsum(abs(a - b) for a, b in pairs) / 2,
        "hellinger": lambda: 1 - math.fsum(math.sqrt(a * b) for a, b in pairs),
        "cs": lambda: (
            -math.log(math.fsum(a * b for a, b in pairs) / math.hypot(*p) / math.hypot(*q))
        ),
        "balanced": lambda: 0.3 * kl(p, q) + 0.7 * kl(q, p),
    }[name]()


@pytest.mark.parametrize(
    "name, divergence",
    [
        ("forward", forward_kl),
        ("reverse", reverse_kl),
        ("js", jensen_shannon),
        ("tv", total_variation),
        ("hellinger", squared_hellinger),
        ("cs", cauchy_schwarz),
        ("balanced", balanced(0.3)),
    ],
)
def test_the_definition(name, divergence):
    p, q = [0.5, 0.3, 0.15, 0.05], [0.1, 0.2, 0.3, 0.4]
    found = divergence(
        torch.tensor(p, dtype=torch.float64), torch.tensor(q, dtype=torch.float64).log()
    )
    assert found.item() == pytest.approx(by_definition(name, p, q), rel=1e-12)


@pytest.mark.parametrize("order", [*ORDERS, -3.0, 0.0, 1.0])
def test_the_definition_of_alpha(order):
    p, q = [0.5, 0.3, 0.15, 0.05], [0.1, 0.2, 0.3, 0.4]
    found = alpha(order)(
        torch.tensor(p, dtype=torch.float64), torch.tensor(q, dtype=torch.float64).log()
    )
    if order in (0, 1):
        expected = by_definition("forward" if order else "reverse", p, q)
    else:
        overlap = math.fsum(a**order * b ** (1 - order) for a, b in zip(p, q, strict=True))
        expected = (1 - overlap) / (order * (1 - order))
    assert found.item() == pytest.approx(expected, rel=1e-9)


def log(x):
    return math.log(x) if x else -math.inf


def alpha_of_a_label(order, p, log_q):
    """p^α q^(1-α) in the limit; q counts as 0 where it is less than any number."""
    if (order < 0 and math.exp(log_q) == 0) or (order > 0 and p == 0):
        return 0.0
    exponent = order * log(p) + (1 - order) * log_q
    return math.exp(exponent) if exponent < 700 else math.inf


def value_and_slopes(name, p, log_q):
    """A divergence of one row by Python's arithmetic, zeros in the limit, and where it is finite
    its derivatives by log q, up to a multiple of q.
    """
    q, log_p = [math.exp(x) for x in log_q], [log(a) for a in p]
    pairs = list(zip(p, q, strict=True))
    middle = [log((a + b) / 2) for a, b in pairs]
    cross = math.fsum(a * b for a, b in pairs)

    def kl(x, log_y):
        return math.fsum(a * (log(a) - b) if a else 0.0 for a, b in zip(x, log_y, strict=True))

    forward = [-a for a in p]
    reverse = [b * (log(b) - log(a)) if a and b else 0.0 for a, b in pairs]
    if name.startswith("alpha"):
        order = float(name.removeprefix("alpha "))
        each = [alpha_of_a_label(order, a, b) for a, b in zip(p, log_q, strict=True)]
        return (1 - math.fsum(each)) / (order * (1 - order)), [-x / order for x in each]
    if name == "balanced":
        both = [(f + r) / 2 for f, r in zip(forward, reverse, strict=True)]
        return (kl(p, log_q) + kl(q, log_p)) / 2, both
    return {
        "cross-entropy": lambda: (
            math.fsum(-a * b for a, b in zip(p, log_q, strict=True) if a),
            forward,
        ),
        "forward KL": lambda: (kl(p, log_q), forward),
        "balanced 1": lambda: (kl(p, log_q), forward),
        "reverse KL": lambda: (kl(q, log_p), reverse),
        "balanced 0": lambda: (kl(q, log_p), reverse),
        "Jensen-Shannon": lambda: (
            (kl(p, middle) + kl(q, middle)) / 2,
            [b * (log(b) - m) / 2 if b else 0.0 for b, m in zip(q, middle, strict=True)],
        ),
        "total variation": lambda: (
            math.fsum(abs(a - b) for a, b in pairs) / 2,
            [math.copysign(b, b - a) / 2 if a != b else 0.0 for a, b in pairs],
        ),
        "squared Hellinger": lambda: (
            1 - math.fsum(math.sqrt(a * b) for a, b in pairs),
            [-math.sqrt(a * b) / 2 for a, b in pairs],
        ),
        "Cauchy-Schwarz": lambda: (
            -math.log(cross / math.hypot(*p) / math.hypot(*q)),
            [b * b / math.fsum(y * y for y in q) - a * b / cross for a, b in pairs],
        ),
    }[name]()


def anew(name):
    """A divergence, made here and not when this file was read."""
    for family, make in (("alpha ", alpha), ("balanced ", balanced)):
        if name.startswith(family):
            return make(float(name.removeprefix(family)))
    return sinkhorn(COST, 0.5) if name == "sinkhorn" else ALL[name]


@pytest.mark.parametrize("name", [n for n in ALL if n not in ("sinkhorn", "Plackett-Luce")])
def test_values_and_gradients_are_those_of_plain_arithmetic(name):
    """In a batch of two dimensions, with every label on either side 0, tiny or ordinary."""
    target, log_q = (x.unflatten(0, (8, -1)) for x in edge_rows(torch.float64))
    divergence = anew(name)
    value, wanted = divergence(target, log_q), torch.zeros_like(log_q)
    assert value.shape == target.shape[:-1]
    coarse = 1e4 if "1e-4" in name or "0.9999" in name else 1.0  # the orders next to a limit
    for i, j in itertools.product(*map(range, value.shape)):
        expected, slopes = value_and_slopes(name, target[i, j].tolist(), log_q[i, j].tolist())
        assert value[i, j].item() == pytest.approx(expected, rel=1e-7, abs=1e-12 * coarse)
        slopes = torch.tensor(slopes, dtype=torch.float64)
        wanted[i, j] = slopes - log_q[i, j].exp() * slopes.sum()
    some = value.isfinite()
    logits = log_q[some].requires_grad_()
    divergence(target[some], logits.log_softmax(-1)).sum().backward()
    torch.testing.assert_close(logits.grad, wanted[some], rtol=1e-6, atol=1e-12 * coarse)


@pytest.mark.parametrize("dtype", DTYPES)
def test_plackett_luce_of_labels_that_the_model_rules_out(dtype):
    """Where neither of two labels is possible, neither can be preferred."""
    target = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.3, 0.5]], dtype=dtype)
    sure = torch.tensor([0.0, -math.inf, -math.inf], dtype=dtype)
    assert plackett_luce(target, sure).tolist() == [0.0, math.inf]
    some = torch.tensor([0.75, 0.25, 0.0], dtype=dtype).log()
    found = plackett_luce(target.unsqueeze(1), some)
    assert found.shape == (2, 1)
    assert found[0].item() == pytest.approx(-math.log(0.75))
    assert found[1].item() == math.inf


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_in_closed_form(dtype):
    one = torch.tensor([1.0, 0.0, 0.0], dtype=dtype)
    wrong = torch.tensor([-120.0, 0.0, -math.inf], dtype=dtype)
    assert cauchy_schwarz(one, wrong).item() == pytest.approx(120)
    assert forward_kl(one, wrong).item() == pytest.approx(120)
    assert jensen_shannon(one, wrong).item() == pytest.approx(math.log(2))
    assert alpha(0.5)(one, wrong).item() == pytest.approx(4)
    assert plackett_luce(one, wrong).item() == pytest.approx(120)
    # a label that both exclude changes nothing
    p, log_q = one.new_tensor([0.6, 0.4]), one.new_tensor([0.3, 0.7]).log()
    padded = one.new_tensor([0.6, 0.4, 0.0]), torch.cat([log_q, log_q.new_tensor([-math.inf])])
    for name, divergence in ALL.items():
        if name != "sinkhorn":
            torch.testing.assert_close(divergence(*padded), divergence(p, log_q), msg=name)
            torch.testing.assert_close(
                pull(divergence, *padded)[:2], pull(divergence, p, log_q), msg=name
            )
            assert pull(divergence, *padded)[2] == 0, name


def test_what_is_infinite():
    p, log_q = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.5, 0.0, 0.5]).log()
    for name, infinite in (
        ("forward KL", True),
        ("reverse KL", True),
        ("balanced", True),
        ("alpha -1.0", True),
        ("alpha 2.0", True),
        ("Plackett-Luce", True),
        ("Jensen-Shannon", False),
        ("alpha 0.5", False),
        ("Cauchy-Schwarz", False),
    ):
        value = ALL[name](p, log_q)
        assert value.isinf() == infinite and not value.isnan(), name
        assert not pull(ALL[name], p, log_q).isnan().any(), name


@pytest.mark.parametrize("name", [n for n in ALL if n not in ("sinkhorn", "Plackett-Luce")])
@pytest.mark.parametrize("distance", [1e-2, 1e-3, 1e-4])
def test_gradients_near_the_target_in_float32(name, distance):
    """What moves the logits, with labels as rare as 1e-6: the smaller the gradient, the more it
    would show what cancels.
    """
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(4, 50, generator=generator).mul(4).softmax(-1)
    logits = target.log() + distance * torch.randn(4, 50, generator=generator)

    def gradient(dtype):
        x = logits.to(dtype).requires_grad_()
        ALL[name](target.to(dtype), x.log_softmax(-1)).sum().backward()
        return x.grad.double()

    expected, found = gradient(torch.float64), gradient(torch.float32)
    slack = 3e-6 / distance * (50 if "1e-4" in name or "0.9999" in name else 1)
    assert (found - expected).norm() <= slack * expected.norm()


@pytest.mark.parametrize("distance", [1e-3, 1e-4])
def test_jensen_shannon_does_not_cancel(distance):
    target = torch.tensor([1e-6, 1e-3, 0.2, 0.8 - 1e-3 - 1e-6])
    log_q = target.log() + distance * torch.tensor([1.0, -1.0, 1.0, -0.3])
    expected = pull(jensen_shannon, target.double(), log_q.double())
    found = pull(jensen_shannon, target, log_q).double()
    torch.testing.assert_close(found, expected, rtol=1e-6 / distance, atol=0)
    value = jensen_shannon(target.double(), log_q.double()).item()
    assert jensen_shannon(target, log_q).item() == pytest.approx(value, rel=2e-6 / distance)


@pytest.mark.parametrize("order", [1e-3, 1e-5, 1e-7])
def test_the_limits_of_alpha_in_float32(order):
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.1, 0.3, 0.6])
    for near, limit in ((order, reverse_kl), (1 - order, forward_kl), (-order, reverse_kl)):
        torch.testing.assert_close(
            alpha(near)(p, q.log()), limit(p, q.log()), rtol=3 * order + 1e-5, atol=0
        )


# Plackett and Luce: labels that the target holds equal


def test_tied_labels_are_exchangeable():
    generator = torch.Generator().manual_seed(0)
    for target in ([0.6, 0.4, 0.0, 0.0], [0.3, 0.3, 0.2, 0.2], [0.25] * 4, [0.5, 0.25, 0.25, 0.0]):
        target = torch.tensor(target, dtype=torch.float64)
        log_q = torch.randn(4, generator=generator, dtype=torch.float64).log_softmax(-1)
        expected, gradient = plackett_luce(target, log_q), pull(plackett_luce, target, log_q)
        for order in itertools.permutations(range(4)):
            order = torch.tensor(order)
            torch.testing.assert_close(plackett_luce(target[order], log_q[order]), expected)
            moved = pull(plackett_luce, target[order], log_q[order])
            torch.testing.assert_close(moved, gradient[order])
            if torch.equal(target[order], target):  # other names for tied labels
                torch.testing.assert_close(plackett_luce(target, log_q[order]), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_labels_that_only_rounding_parts_are_tied(dtype):
    eps = torch.finfo(dtype).eps
    exact = torch.tensor([0.3, 0.3, 0.3, 0.1], dtype=dtype)
    log_q = torch.tensor([0.2, 0.3, 0.1, 0.4], dtype=dtype).log()
    for a, b in itertools.product((-2, 0, 2), repeat=2):
        near = exact * torch.tensor([1 + a * eps, 1.0, 1 + b * eps, 1.0], dtype=dtype)
        torch.testing.assert_close(plackett_luce(near, log_q), plackett_luce(exact, log_q))
    parted = exact * torch.tensor([1 + 1000 * eps, 1.0, 1.0, 1.0], dtype=dtype)
    assert plackett_luce(parted, log_q) > plackett_luce(exact, log_q) + 0.1


def test_a_top_k_teacher_asks_for_the_order_of_its_labels():
    q = torch.tensor([0.2, 0.3, 0.1, 0.4], dtype=torch.float64)
    target = torch.tensor([0.6, 0.4, 0.0, 0.0], dtype=torch.float64)
    # the sum over both orders of the last two of the probability of the whole order
    first = q[0] * q[1] / (1 - q[0])
    assert plackett_luce(target, q.log()).item() == pytest.approx(-math.log(first))
    whole = sum(first * q[i] / (q[i] + q[j]) for i, j in ((2, 3), (3, 2)))
    assert whole == pytest.approx(first.item())


def test_tied_labels_are_compared_with_those_below_only():
    q = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    target = torch.tensor([0.4, 0.4, 0.2], dtype=torch.float64)
    expected = math.log((0.2 + 0.5) / 0.2) + math.log((0.3 + 0.5) / 0.3)
    assert plackett_luce(target, q.log()).item() == pytest.approx(expected)
    assert plackett_luce(torch.full((3,), 1 / 3), q.float().log()) == 0
    one = torch.tensor([1.0])
    assert plackett_luce(one, one.log()) == 0


# the same through the estimators


class Padded:
    """Two short contexts, three extended ones, five labels of which the last is padding."""

    def __init__(self, low: float, dtype: torch.dtype):
        generator = torch.Generator().manual_seed(0)
        self.logits = torch.randn(2, 3, 4, generator=generator, dtype=dtype).requires_grad_()
        self.low = low
        self.contexts = imm.BeliefContexts(torch.full((2, 3), 1 / 3, dtype=dtype))
        self.short = torch.tensor([0, 0, 0, 1, 1, 1])
        self.extended = torch.tensor([0, 1, 2, 0, 1, 2])
        self.target = torch.zeros(2, 5, dtype=dtype)
        self.target[:, :4] = torch.randn(2, 4, generator=generator, dtype=dtype).softmax(-1)

    def query(self, short, extended):
        logits = self.logits[short, extended]
        return torch.cat([logits, logits.new_full((len(logits), 1), self.low)], 1).log_softmax(-1)

    def estimators(self, divergence):
        draws = {"k": 4, "divergence": divergence}
        yield imm.ExactIMM(self.target, self.contexts, divergence), True
        for sequential in (False, True):
            generator = torch.Generator().manual_seed(0)
            yield (
                imm.SampledIMM(
                    self.target,
                    self.contexts,
                    sequential=sequential,
                    generator=generator,
                    **draws,
                ),
                True,
            )
        yield imm.SampledNoising(self.target, self.contexts, **draws), True
        yield imm.MovingAverageIMM(self.target, 2, 5, divergence=divergence), False


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("low", [-120.0, -math.inf, torch.finfo(torch.float32).min])
@pytest.mark.parametrize("name", [n for n in ALL if n != "sinkhorn"])
def test_padding_does_no_harm_in_any_estimator(name, low, dtype):
    if (
        low == -120
        and dtype == torch.float64
        and ALL[name](
            torch.tensor([1.0, 0.0], dtype=dtype), torch.tensor([0.0, low], dtype=dtype)
        ).isinf()
    ):
        pytest.skip("infinite: the padding is excluded by the target and possible for the model")
    model = Padded(low, dtype)
    for estimator, queries in model.estimators(ALL[name]):
        estimator = estimator.to(dtype)
        loss = (
            estimator(model.query, model.short)
            if queries
            else estimator(model.query(model.short, model.extended), model.short)
        )
        (gradient,) = torch.autograd.grad(loss, model.logits)
        assert estimator.risk.isfinite(), type(estimator)
        assert gradient.isfinite().all() and gradient.abs().max() > 0, type(estimator)


# optimal transport says when it has not converged


def test_sinkhorn_warns_with_the_error_of_its_marginal():
    p, q = torch.tensor([0.97, 0.01, 0.01, 0.01]), torch.tensor([0.01, 0.01, 0.01, 0.97])
    with pytest.warns(
        RuntimeWarning, match=r"not converged in 3 steps: a marginal .* off by [0-9]"
    ):
        value = sinkhorn(COST, 0.1, steps=3)(p, q.log())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        right = sinkhorn(COST, 0.1, steps=20_000)(p, q.log())
    assert abs(value / right - 1) > 0.1  # there was something to warn of
    assert transport.MISSED <= 1e-3
