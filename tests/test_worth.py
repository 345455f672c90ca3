"""How much a restricted model is worth: informations against sums by hand, laws, and simulation."""

import math
import warnings

import pytest
import torch

import imm_lib as imm
from imm_lib.premise import lead, surprise
from imm_lib.uses import USES
from imm_lib.worth import Worth, informations, measure, suggest_lambda


class World:
    """Logistic regression on a finite world: 3 short contexts, 4 extended ones, 3 parameters."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.features = torch.randn(3, 4, 3, generator=generator, dtype=torch.float64)
        self.features[..., 0] = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64).unsqueeze(1)
        self.pi = torch.rand(3, 4, generator=generator, dtype=torch.float64)
        self.pi /= self.pi.sum()
        self.belief = self.pi / self.pi.sum(1, keepdim=True)
        self.theta = torch.tensor([1.0, -0.5, 0.8], dtype=torch.float64, requires_grad=True)
        self.cells = torch.cartesian_prod(torch.arange(3), torch.arange(4))

    def query(self, short, extended):
        logit = self.features[short, extended] @ self.theta
        return torch.stack([torch.zeros_like(logit), logit], -1).log_softmax(-1)

    def informations(self):
        contexts = imm.BeliefContexts(self.belief)
        return informations(self.query, [self.theta], contexts, *self.cells.T, self.pi.flatten())


def test_informations_by_hand():
    world = World()
    full, induced, context = world.informations()
    theta = world.theta.detach()
    expected = [torch.zeros(3, 3, dtype=torch.float64) for _ in range(3)]
    p = torch.sigmoid(world.features @ theta)
    p_bar = (world.belief * p).sum(1)
    slope = (world.belief.unsqueeze(2) * (p * (1 - p)).unsqueeze(2) * world.features).sum(
        1
    )  # of p_bar, (3, 3)
    for s in range(3):
        scores = torch.stack(
            [-slope[s] / (1 - p_bar[s]), slope[s] / p_bar[s]]
        )  # of log Q̂, by label
        for e in range(4):
            w, x, q = world.pi[s, e], world.features[s, e], p[s, e]
            expected[0] += w * q * (1 - q) * torch.outer(x, x)
            for y, probability in enumerate((1 - p_bar[s], p_bar[s])):
                expected[1] += w * probability * torch.outer(scores[y], scores[y])
            g = (1 - q) * scores[0] + q * scores[1]
            expected[2] += w * torch.outer(g, g)
    for found, value in zip((full, induced, context), expected, strict=True):
        torch.testing.assert_close(found, value)


def test_the_price_never_exceeds_the_gain_and_the_gain_never_one():
    full, induced, context = World().informations()
    assert torch.linalg.eigvalsh(induced - context).min() > -1e-12
    assert torch.linalg.eigvalsh(full - induced).min() > -1e-12  # data processing: less is seen
    found = Worth.of(full, induced, context)
    assert (
        (found.gain <= 1).all()
        and (found.price <= found.gain + 1e-12).all()
        and (found.price >= 0).all()
    )


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("m", [50.0, math.inf])
def test_the_diagonal_form_is_the_trace_formula(known, m):
    full, induced, context = World().informations()
    n, lam = 80, 0.7
    a = torch.linalg.inv(full + lam * induced)
    noise = full + lam**2 * ((0 if known else 1) * context + n / m * induced)
    expected = torch.trace(full @ a @ noise @ a).item() / (2 * n)
    assert Worth.of(full, induced, context).excess_risk(lam, n, m, known) == pytest.approx(
        expected, rel=1e-10
    )


def test_measure_is_both_in_one():
    world = World()
    found = measure(
        world.query,
        [world.theta],
        imm.BeliefContexts(world.belief),
        *world.cells.T,
        world.pi.flatten(),
    )
    torch.testing.assert_close(found.gain, Worth.of(*world.informations()).gain)


def test_the_best_weight():
    found = Worth.of(*World().informations())
    for n, m in ((100, 30), (100, 1000)):
        assert found.optimal_lambda(n, m, known=True) == pytest.approx(m / n, rel=1e-6)
        best = found.optimal_lambda(n, m)
        assert best < m / n
        assert all(
            found.excess_risk(best, n, m) <= found.excess_risk(best * f, n, m) + 1e-12
            for f in (0.5, 0.9, 1.1, 2)
        )
    assert found.optimal_lambda(100, known=True) == math.inf
    assert 0 < found.optimal_lambda(100) < math.inf
    assert Worth(torch.zeros(2), torch.zeros(2)).optimal_lambda(10) == 0.0


def test_what_the_multiplier_says():
    found = Worth.of(*World().informations())
    assert found.effective_multiplier(0.0, 50) == pytest.approx(1.0)
    assert found.excess_risk(0.0, 50) == pytest.approx(3 / 100)
    best = found.optimal_lambda(50, 200)
    assert found.effective_multiplier(best, 50, 200) > 1
    assert found.effective_multiplier(1e6, 50, 5) < 1  # a poor target with a large weight hurts


def test_a_mixture_of_useless_and_priceless_directions():
    found = Worth(torch.tensor([0.5, 0.2]), torch.tensor([0.1, 0.0]))
    best = found.optimal_lambda(100)
    grid = torch.logspace(-3, 6, 4000)
    risks = torch.tensor([found.excess_risk(lam, 100) for lam in grid.tolist()])
    assert found.excess_risk(best, 100) <= risks.min().item() * (1 + 1e-6)


def test_a_weight_beyond_any_square():
    """Useless directions stay as they are, priced ones have a limit."""
    gain, price = torch.tensor([0.5, 0.0]), torch.tensor([0.2, 0.0])
    found = Worth(gain, price)
    limit = (0.2 / 0.5**2 + 1) / (2 * 10)
    for lam in (1e12, 1e200, 1e300):
        assert found.excess_risk(lam, 10) == pytest.approx(limit)
    assert found.effective_multiplier(1e300, 10) == pytest.approx(2 / (20 * limit))


def test_on_a_network_with_sampled_contexts():
    """K by simulation: the covariance of the IMM gradient over data sets of extended contexts,
    times their size.
    """
    world = World()
    generator = torch.Generator().manual_seed(1)
    target = torch.stack(
        [
            1 - (p := (world.belief * torch.sigmoid(world.features @ world.theta.detach())).sum(1)),
            p,
        ],
        1,
    )
    n, gradients = 4000, []
    for _ in range(150):
        cells = torch.multinomial(world.pi.flatten(), n, replacement=True, generator=generator)
        short, extended = world.cells[cells].T
        exact = imm.ExactIMM(target, imm.GroupedContexts(short, 3))
        risk = exact(lambda s, i, e=extended: world.query(s, e[i]), short)
        gradients.append(torch.autograd.grad(risk, world.theta)[0])
    covariance = n * torch.cov(torch.stack(gradients).T)
    context = world.informations()[2]
    assert (covariance - context).norm() < 0.35 * context.norm()


@pytest.mark.parametrize("bandwidth", [0.05, 0.3, 3.0])
def test_the_price_of_a_kernel(bandwidth):
    """K by simulation again; a kernel lends a point to many short contexts, which the cell-wise
    formula overlooks.
    """
    generator, n, theta = (
        torch.Generator().manual_seed(2),
        120,
        torch.tensor([1.0, -0.5], requires_grad=True),
    )
    short = torch.linspace(-1, 1, n).unsqueeze(1)
    contexts = imm.KernelContexts(short, bandwidth)
    grid = 1 + torch.randn(20_000, 2, generator=generator)
    one = torch.sigmoid(
        grid @ theta.detach()
    ).mean()  # e does not depend on s, so that no kernel is biased
    exact = imm.ExactIMM(lambda s: torch.stack([1 - one, one]).expand(len(s), 2), contexts)
    gradients, prices = [], []
    for _ in range(250):
        e = 1 + torch.randn(n, 2, generator=generator)

        def query(s, i, e=e):
            logit = e[i] @ theta
            return torch.nn.functional.logsigmoid(torch.stack([-logit, logit], 1))

        gradients.append(torch.autograd.grad(exact(query, short), theta)[0])
        if len(prices) < 20:
            prices.append(informations(query, [theta], contexts, short, torch.arange(n))[2])
    simulated = n * torch.cov(torch.stack(gradients).double().T)
    found = torch.stack(prices).mean(0)
    assert (simulated - found).norm() < 0.25 * simulated.norm()


def test_bad_input():
    world = World()
    contexts = imm.BeliefContexts(world.belief)
    short, extended = world.cells.T
    with pytest.raises(ValueError, match="parameters"):
        informations(world.query, [torch.zeros(2)], contexts, short, extended)
    with pytest.raises(ValueError, match="extended"):
        informations(world.query, [world.theta], contexts, short, extended[:3])
    for bad in (world.theta, torch.nn.Linear(2, 2)):
        with pytest.raises(TypeError, match="parameters must be an iterable"):
            informations(world.query, bad, contexts, short, extended)
    with pytest.raises(TypeError, match="contexts"):
        informations(world.query, [world.theta], None, short, extended)
    answers = {
        r"must be \(12, Y\)": lambda s, e: world.query(s, e)[:3],
        "sum to 1 over labels": lambda s, e: world.query(s, e) - 1,
        "without a gradient": lambda s, e: world.query(s, e).detach(),
    }
    for words, query in answers.items():
        with pytest.raises(ValueError, match=words):
            informations(query, [world.theta], contexts, short, extended)
    with pytest.raises(ValueError, match="weight"):
        informations(world.query, [world.theta], contexts, short, extended, torch.ones(12))
    with pytest.raises(ValueError, match=r"weight must be \(12,\)"):
        informations(world.query, [world.theta], contexts, short, extended, torch.tensor([1.0]))
    eye = torch.eye(2, dtype=torch.float64)
    with pytest.raises(ValueError, match="invertible"):
        Worth.of(torch.diag(torch.tensor([1.0, 0.0])), eye)
    assert Worth.of(torch.diag(torch.tensor([1.0, 0.0])), eye, damping=0.1).gain.isfinite().all()
    with pytest.raises(ValueError, match="induced"):
        Worth.of(eye, torch.eye(3))
    with pytest.raises(ValueError, match="damping"):
        Worth.of(eye, eye, damping=-1.0)
    found = Worth.of(eye, eye)
    for arguments in ({"lam": -1.0, "n": 5}, {"lam": 1.0, "n": 0}, {"lam": 1.0, "n": 5, "m": 0}):
        with pytest.raises(ValueError):
            found.excess_risk(**arguments)


def test_surprise_is_standard_normal_of_a_right_target():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(200, 5, generator=generator).softmax(-1)
    z = torch.tensor(
        [
            surprise(rows, torch.multinomial(rows, 1, generator=generator).squeeze(1)).z
            for _ in range(400)
        ]
    )
    assert abs(z.mean()) < 4 / 20 and abs(z.std() - 1) < 0.15


def test_surprise_finds_a_shifted_population_and_a_timid_target():
    generator = torch.Generator().manual_seed(1)
    rows = (2 * torch.randn(400, 3, generator=generator)).softmax(-1)
    label = torch.multinomial(rows, 1, generator=generator).squeeze(1)
    found = surprise(rows, label)
    assert found.loss == pytest.approx(
        torch.nn.functional.nll_loss(rows.log(), label).item(), rel=1e-5
    )
    assert found.expected == pytest.approx(torch.special.entr(rows).sum(1).mean().item(), rel=1e-5)
    assert surprise(rows.flip(1), label).z > 5
    assert surprise((rows + 1) / 4, label).z < -5


@pytest.mark.parametrize("labels", [2, 3, 5, 7, 10, 40])
def test_a_target_of_equal_rows_is_never_surprised(labels):
    found = surprise(torch.full((20, labels), 1 / labels), torch.arange(20) % labels)
    assert found.z == 0 and found.loss == pytest.approx(math.log(labels)) == found.expected


def test_a_label_that_the_target_rules_out_is_an_infinite_surprise():
    found = surprise(torch.tensor([[0.5, 0.5, 0.0]] * 4), torch.tensor([0, 1, 0, 2]))
    assert found.loss == found.z == math.inf and found.expected == pytest.approx(math.log(2))


def test_surprise_of_certain_targets():
    rows = torch.eye(2).repeat(3, 1)
    assert surprise(rows, torch.tensor([0, 1] * 3)).z == 0
    assert surprise(rows, torch.tensor([1, 1] * 3)).z == math.inf
    with pytest.raises(ValueError, match="rows"):
        surprise(torch.ones(2, 2), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="rows must be"):
        surprise(torch.tensor([1.0]), torch.tensor([0]))
    with pytest.raises(ValueError, match="label must hold"):
        surprise(rows, torch.tensor([0, 2] * 3))
    with pytest.raises(ValueError, match="as long as rows"):
        surprise(rows, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="non-empty"):
        surprise(torch.ones(0, 2), torch.tensor([0]))


def test_the_suggested_lambda_is_the_best_of_what_was_measured():
    torch.manual_seed(0)
    short, extended = torch.arange(12) % 3, torch.arange(12)
    theta, features = torch.zeros(2, 3, requires_grad=True), torch.randn(12, 2)
    contexts = imm.GroupedContexts(short)

    def query(short, extended):
        return (features[extended] @ theta).log_softmax(1)

    theta.data.normal_()
    arguments = query, [theta], contexts, short, extended
    worth = measure(*arguments, damping=1e-3)
    for m in (6, 120, math.inf):
        lam = suggest_lambda(*arguments, m=m)
        assert lam == pytest.approx(worth.optimal_lambda(12, m), rel=1e-9) and lam <= 30
        assert worth.excess_risk(lam, 12, m) <= min(
            worth.excess_risk(other, 12, m) for other in (0.1, 0.3, 1, 3, 10)
        )
    assert suggest_lambda(*arguments, m=120, largest=0.25) == 0.25
    with pytest.raises(ValueError, match="largest"):
        suggest_lambda(*arguments, largest=0)
    alone = imm.KernelContexts(features, bandwidth=1e-3)  # nobody has a neighbour
    with pytest.warns(
        UserWarning, match=r"contexts give a short context only 1\.0 extended contexts"
    ):
        suggest_lambda(query, [theta], alone, features, extended, damping=0.1)


def test_a_weight_listed_twice_is_one():
    theta = torch.tensor([0.5, -0.5], dtype=torch.float64, requires_grad=True)
    short, extended = torch.zeros(2, dtype=torch.long), torch.arange(2)

    def query(short, extended):
        return torch.stack([torch.zeros(len(extended)), theta[extended]], 1).log_softmax(1)

    sample = imm.GroupedContexts(short), short, extended
    pairs = torch.zeros(4, dtype=torch.long), torch.tensor([0, 1, 0, 1])
    given = {"target": torch.tensor([[0.5, 0.5]]), "pairs": pairs}
    once, frozen = informations(query, [theta], *sample), torch.zeros(3)
    for listed in ([theta, theta], [frozen, theta, theta]):
        torch.testing.assert_close(informations(query, listed, *sample), once)
        found = imm.worth.compare(query, listed, *sample, **given)
        wanted = imm.worth.compare(query, [theta], *sample, **given)
        assert [found.best(use) for use in USES] == [wanted.best(use) for use in USES]


def test_worth_refuses():
    eye = torch.eye(2)
    skew = torch.tensor([[1.0, 0.5], [0.0, 1.0]])
    for bad in (eye * math.nan, skew, skew * 1e-9):  # in whatever unit
        with pytest.raises(ValueError, match="induced must be finite and symmetric"):
            Worth.of(eye, bad)
    with pytest.raises(ValueError, match=r"price must be .*, as long as gain"):
        Worth(torch.ones(2), torch.ones(1))
    with pytest.raises(ValueError, match="gain must be"):
        Worth(torch.ones(0), torch.ones(0))
    for m, error in (
        (0, ValueError),
        (-1.0, ValueError),
        (math.nan, ValueError),
        ("10", TypeError),
    ):
        with pytest.raises(error, match="m must be"):
            Worth(torch.ones(1), torch.ones(1)).excess_risk(1.0, 10, m)


def test_the_lead_of_a_target_is_what_enumeration_finds(monkeypatch):
    """For grouped and for kernel contexts, and whatever the pairs are cut into."""
    generator = torch.Generator().manual_seed(0)
    log_q = torch.randn(7, 3, generator=generator, dtype=torch.float64).log_softmax(1)
    group, value = (
        torch.tensor([0, 1, 0, 1, 1, 0, 0]),
        torch.randn(7, 2, generator=generator, dtype=torch.float64),
    )
    label, table = (
        torch.tensor([0, 1, 2, 2, 1]),
        torch.rand(2, 3, generator=generator, dtype=torch.float64).softmax(1),
    )

    def mixed(short):
        share = short[:, :1].sigmoid()
        return share * table[0] + (1 - share) * table[1]

    cases = [
        (imm.GroupedContexts(group), torch.tensor([0, 1, 1, 0, 0]), table),
        (
            imm.KernelContexts(value, 0.7),
            value[:5] + 0.1,
            lambda short: (
                short[:, :1].sigmoid() * table[0] + (1 - short[:, :1].sigmoid()) * table[1]
            ),
        ),
    ]
    for contexts, short, target in cases:
        rows = table[short] if target is table else target(short)
        induced = contexts.log_weights(short).exp() @ log_q.exp()
        ours, theirs = (-p[torch.arange(5), label].log() for p in (rows, induced))
        found = {}
        for part in (64, 2):
            monkeypatch.setattr(imm.premise, "PART", part)
            found[part] = lead(
                lambda short, extended: log_q[extended], contexts, target, short, label
            )
        assert found[2].ahead == pytest.approx(found[64].ahead, abs=1e-12)
        assert found[2].target == pytest.approx(ours.mean().item()) and found[
            2
        ].induced == pytest.approx(theirs.mean().item())
        assert found[2].error == pytest.approx((theirs - ours).std().item() / 5**0.5)


def test_a_label_that_the_target_rules_out_leaves_no_lead():
    log_q, zeros = torch.full((2, 2), 0.5).log(), torch.zeros(3, dtype=torch.long)
    certain = torch.tensor([[1.0, 0.0]])
    query = lambda short, extended: log_q[extended]  # noqa: E731
    found = lead(query, imm.GroupedContexts(zeros[:2]), certain, zeros, torch.tensor([0, 1, 0]))
    assert (found.target, found.ahead, found.error) == (math.inf, -math.inf, math.inf)
    with pytest.raises(ValueError, match="short"):
        lead(
            query,
            imm.GroupedContexts(zeros[:2], num_short=2),
            certain.expand(2, 2),
            zeros + 1,
            zeros,
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"short": torch.tensor([0])}, "short must hold at least two pairs"),
        ({"label": torch.tensor([0])}, "label must be \\(3,\\), as long as short"),
        ({"label": torch.tensor([0, 1, 2])}, "label must hold ids in"),
        ({"contexts": None}, "contexts must be one of the context classes"),
        ({"target": torch.tensor([[0.5, 0.6]])}, "target"),
        ({"query": lambda short, extended: torch.zeros(len(short), 3)}, "query"),
    ],
)
def test_a_lead_that_cannot_be_measured(change, message):
    given = {
        "query": lambda short, extended: torch.full((len(short), 2), 0.5).log(),
        "contexts": imm.GroupedContexts(torch.tensor([0, 0])),
        "target": torch.tensor([[0.4, 0.6]]),
        "short": torch.zeros(3, dtype=torch.long),
        "label": torch.tensor([0, 1, 1]),
    }
    with pytest.raises((TypeError, ValueError), match=message):
        lead(**given | change)


def grouped_world(rows, num=4, per=3):
    """One model row per group, the same in each of its contexts; a query of those."""
    log_q = rows.log()
    contexts = imm.GroupedContexts(torch.arange(num).repeat_interleave(per))
    return lambda short, extended: log_q[short], contexts


def test_lead_names_every_unseen_group_and_drops_them_on_request():
    rows = torch.full((6, 2), 0.5, dtype=torch.float64)
    contexts = imm.GroupedContexts(torch.tensor([0, 1, 1, 4]), 6)
    short, label = torch.tensor([0, 1, 2, 3, 3, 4, 5]), torch.tensor([0, 1, 0, 1, 0, 1, 0])
    query = lambda s, e: rows[s].log()  # noqa: E731
    with pytest.raises(
        ValueError, match=r"4 of 7 pairs in 3 groups never seen: 2, 3, 5; .*drop_unseen"
    ):
        lead(query, contexts, rows, short, label)
    found = lead(query, contexts, rows, short, label, drop_unseen=True)
    assert (found.pairs, found.dropped) == (3, 4)
    kept = torch.tensor([0, 1, 5])
    assert found.target == lead(query, contexts, rows, short[kept], label[kept]).target
    with pytest.raises(ValueError, match="at least two pairs of seen groups, got 1"):
        lead(query, contexts, rows, short[1:4], label[1:4], drop_unseen=True)


def test_the_slope_is_the_derivative_of_the_loss_along_imms_step():
    generator = torch.Generator().manual_seed(0)
    q, p = (torch.rand(4, 3, generator=generator, dtype=torch.float64).softmax(1) for _ in range(2))
    short = torch.randint(4, (500,), generator=generator)
    label = torch.randint(3, (500,), generator=generator)
    found = lead(*grouped_world(q), p, short, label)
    step = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    moved = (q.log() + step * (p - q)).log_softmax(1)  # the risk's gradient by the logits is q - p
    (slope,) = torch.autograd.grad(-moved[short, label].mean(), step)
    assert found.slope == pytest.approx(-slope.item())


@pytest.mark.parametrize("pairs", [20, 200])
@pytest.mark.parametrize("q_one", [0.5, 0.1])
def test_a_useless_target_gets_a_go_as_rarely_as_stated(pairs, q_one):
    """The model is right about the pairs and the target is not: slope 0 in the mean."""
    generator = torch.Generator().manual_seed(pairs)
    q = torch.tensor([[1 - q_one, q_one]] * 4, dtype=torch.float64)
    p = torch.tensor([[0.3, 0.7], [0.8, 0.2], [0.6, 0.4], [0.05, 0.95]], dtype=torch.float64)
    query, contexts = grouped_world(q)
    decisions = []
    for _ in range(400):
        short = torch.randint(4, (pairs,), generator=generator)
        label = (torch.rand(pairs, generator=generator) < q_one).long()
        decisions.append(lead(query, contexts, p, short, label).decision(0.05))
    limit = 0.05 + 3 * (0.05 * 0.95 / 400) ** 0.5  # three standard errors of the share
    assert decisions.count("go") / 400 <= limit and decisions.count("stop") / 400 <= limit


def test_a_target_worth_a_step_gets_a_go_where_it_is_not_ahead():
    """Overconfident, so that its own loss is no better, yet right about the direction."""
    generator = torch.Generator().manual_seed(1)
    truth = torch.tensor([[0.4, 0.6], [0.6, 0.4]] * 2, dtype=torch.float64)
    p = torch.tensor([[0.15, 0.85], [0.85, 0.15]] * 2, dtype=torch.float64)
    q = torch.full((4, 2), 0.5, dtype=torch.float64)
    short = torch.randint(4, (4000,), generator=generator)
    label = (torch.rand(4000, generator=generator) < truth[short, 1]).long()
    found = lead(*grouped_world(q), p, short, label)
    assert found.ahead < 0 and found.decision() == "go"
    assert lead(*grouped_world(q), p.flip(1), short, label).decision() == "stop"
    with pytest.raises(ValueError, match="level must be"):
        found.decision(0.7)


def test_the_approximate_students_t_is_near_the_exact_one():
    from scipy.stats import t as student

    from imm_lib.premise import _student_tail

    for freedom in (3, 10, 100):
        for value in (0.0, 1.0, 2.0, 3.0):
            assert _student_tail(value, freedom) == pytest.approx(
                student.sf(value, freedom), abs=2e-3
            )


@pytest.mark.parametrize("m", [40.0, 300.0, math.inf])
@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("unlabelled", [0.0, 70.0])
def test_the_formulas_direction_by_direction(m, known, unlabelled):
    gain, price, n = [0.9, 0.4, 0.05], [0.3, 0.2, 0.0], 120
    found = Worth(torch.tensor(gain), torch.tensor(price))

    def risk(lam):
        counted = 0.0 if known else n / (n + unlabelled)
        costs = [counted * k + n / m * j for j, k in zip(gain, price, strict=True)]
        each = [(1 + lam**2 * c) / (1 + lam * j) ** 2 for j, c in zip(gain, costs, strict=True)]
        return math.fsum(each) / (2 * n)

    options = {"n": n, "m": m, "known": known, "unlabelled": unlabelled}
    for lam in (0.0, 0.3, 1.0, 8.0):
        assert found.excess_risk(lam, **options) == pytest.approx(risk(lam))
        assert found.effective_multiplier(lam, **options) == pytest.approx(3 / (2 * n * risk(lam)))
    best = found.optimal_lambda(**options)
    if known and m == math.inf:
        assert best == math.inf
    else:
        assert risk(best) <= min(risk(0.01 * 1.02**i) for i in range(800)) * (1 + 1e-6)


def test_the_neighbours_that_suggest_lambda_counts(monkeypatch):
    """1 / Σ π², on average over data points: 4 for each of four, 2 for each of two."""
    theta = torch.zeros(3, requires_grad=True, dtype=torch.float64)

    def query(short, extended):
        zero = torch.zeros(len(extended), dtype=torch.float64)
        return torch.stack([zero, theta[extended % 3]], 1).log_softmax(1)

    short = torch.tensor([0, 0, 0, 0, 1, 1])
    many = imm.GroupedContexts(short)
    with monkeypatch.context() as few, pytest.warns(UserWarning, match=r"only 3\.3 extended"):
        few.setattr(imm.worth, "FEW", 3.5)
        suggest_lambda(query, [theta], many, short, torch.arange(6))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one = torch.zeros(3, dtype=torch.long)  # as many as are enough
        lam = suggest_lambda(query, [theta], imm.GroupedContexts(one), one, torch.arange(3))
    assert lam == 30.0  # a perfect target and no price of a mean over all points
    with pytest.raises(ValueError, match=r"^largest must be"):
        suggest_lambda(query, [theta], imm.GroupedContexts(one), one, torch.arange(3), largest=-1)
