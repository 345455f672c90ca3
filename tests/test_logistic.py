"""Logistic regression: the closed-form gradients against the library's estimators under autograd,
and the problem.
"""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from worlds import generator

import imm_lib as imm
from imm_lib import experiments
from imm_lib.experiments import logistic
from imm_lib.experiments.logistic import paper, terms
from imm_lib.experiments.logistic.readings import equal_accuracy, extra_data
from imm_lib.experiments.spread import spread

N, R = 7, 3
PLANE = logistic.Plane.through_centre(1, 2, 1)
DATA = PLANE.draw(R, N, generator(5), dtype=torch.float64)
WEIGHTS = 3 * torch.randn(4, R, generator=generator(6), dtype=torch.float64)
KERNEL = terms.kernel(DATA)


def rows(run: int, data: logistic.Data = DATA) -> Tensor:
    """(n, 2) target of one run, as the estimators take it."""
    return torch.stack([1 - data.target[:, run], data.target[:, run]], 1)


def query(run: int, weights: Tensor):
    """The full model of one run on (N,) short contexts, given as values, and (N,) indices of data
    points.
    """

    def model(short: Tensor, extended: Tensor) -> Tensor:
        logit = weights[0] * short + DATA.extended[:, extended, run].T @ weights[1:3] + weights[3]
        return torch.stack([logsigmoid(-logit), logsigmoid(logit)], 1)

    return model


def by_autograd(risk, run: int) -> Tensor:
    weights = WEIGHTS[:, run].clone().requires_grad_()
    return torch.autograd.grad(risk(query(run, weights)), weights)[0]


def assert_twins(term: terms.Term, risk, step: int = 0) -> None:
    """``risk(model, run)`` is the twin; every run's gradient agrees to 1e-10."""
    fast = logistic.gradient(DATA, WEIGHTS, term, step)
    for run in range(R):
        slow = by_autograd(lambda model, run=run: risk(model, run), run)
        torch.testing.assert_close(fast[:, run], slow, rtol=1e-10, atol=1e-10)


def own(model, run: int) -> Tensor:
    return model(DATA.short[:, run], torch.arange(N))


def dense(model, run: int) -> Tensor:
    """(n, n, 2) log-probabilities of every pair."""
    short = DATA.short[:, run].repeat_interleave(N)
    return model(short, torch.arange(N).repeat(N)).view(N, N, 2)


def test_exact_is_the_estimator_with_kernel_contexts():
    def risk(model, run):
        contexts = imm.KernelContexts(DATA.short[:, run], bandwidth=1.0)
        order = DATA.short[:, run].argsort()

        def target(short):
            place = torch.searchsorted(DATA.short[order, run].contiguous(), short)
            return rows(run)[order][place]

        return imm.ExactIMM(target, contexts)(model, DATA.short[:, run])

    assert_twins(terms.exact(DATA), risk)


def test_noising():
    def twin(model, run):
        return imm.noising_risk(rows(run), dense(model, run), KERNEL[:, :, run].log()).mean()

    assert_twins(terms.noising(DATA), twin)


def test_reverse_kd():
    assert_twins(
        terms.reverse_kd(DATA),
        lambda model, run: imm.ReverseKD(rows(run))(own(model, run), torch.arange(N)),
    )


@pytest.mark.parametrize("k", [1, 4, N])
def test_sampled(k):
    place = terms.drawer(KERNEL, k, generator(8))()

    def risk(model, run):
        short = DATA.short[:, run].repeat_interleave(k)
        log_q = model(short, place[:, :, run].flatten()).view(N, k, 2)
        return imm.imm_risk(rows(run), log_q).mean()

    assert_twins(terms.sampled(DATA, k, generator(8)), risk)


def test_drawn_contexts_follow_the_kernel():
    place = terms.drawer(KERNEL, 20_000, generator(1))()
    share = torch.stack([(place == e).double().mean(1) for e in range(N)], 1)
    assert (share - KERNEL).abs().max() < 5 * math.sqrt(0.25 / 20_000)


def test_serialized_keeps_the_ratio_of_its_last_refresh():
    before = WEIGHTS + torch.randn(4, R, generator=generator(2), dtype=torch.float64)
    term = terms.serialized(DATA, period=2)
    logistic.gradient(DATA, before, term, step=0)

    def risk(model, run):
        frozen = query(run, before[:, run])
        twin = imm.SerializedIMM(rows(run), N, 2).double()
        table = imm.induce(dense(frozen, run), KERNEL[:, :, run].log())
        twin.load_state_dict({"table": table, "visited": torch.ones(N, dtype=torch.bool)})
        return twin(own(model, run), torch.arange(N), own(frozen, run))

    assert_twins(term, risk, step=1)


def test_moving_average_is_the_estimator_on_drawn_contexts():
    before = WEIGHTS + torch.randn(4, R, generator=generator(2), dtype=torch.float64)
    term, draw = (
        terms.moving_average(DATA, 0.3, generator(9)),
        terms.drawer(KERNEL, 1, generator(9)),
    )
    logistic.gradient(DATA, before, term)
    first, second = draw()[:, 0], draw()[:, 0]

    def risk(model, run):
        twin = imm.MovingAverageIMM(rows(run), N, 2, momentum=0.3).double()
        twin(query(run, before[:, run])(DATA.short[:, run], first[:, run]), torch.arange(N))
        return twin(model(DATA.short[:, run], second[:, run]), torch.arange(N))

    assert_twins(term, risk, step=1)


def test_a_stale_table_with_the_current_model():
    before = WEIGHTS + torch.randn(4, R, generator=generator(2), dtype=torch.float64)
    term = terms.stale_table(DATA, period=2, momentum=0.5)
    logistic.gradient(DATA, before, term, step=0)
    logistic.gradient(DATA, WEIGHTS, term, step=2)

    def risk(model, run):
        old, new = (
            imm.induce(dense(query(run, w[:, run]), run), KERNEL[:, :, run].log()).exp()
            for w in (before, WEIGHTS)
        )
        log_q = own(model, run)
        weight = rows(run) * log_q.detach().exp() / (0.5 * old + 0.5 * new)
        return -(weight * log_q).sum(1).mean()

    assert_twins(term, risk, step=3)


STOCHASTIC = ("IMM sampled", "IMM moving average", "noising, hard labels")


def test_hard_labels_are_noising_in_the_mean():
    soft, hard = terms.noising(DATA), terms.noising_redrawn(DATA, generator(3))
    short, extended = (
        torch.randn(N, R, generator=generator(s), dtype=torch.float64) for s in (1, 2)
    )
    draws = [hard(short, extended, step) for step in range(4000)]
    for index, expected in enumerate(soft(short, extended, 0)):
        drawn = torch.stack([draw[index] for draw in draws])
        error = drawn.std(0) / len(draws) ** 0.5
        assert ((drawn.mean(0) - expected).abs() < 5 * error + 1e-12).all()
        assert drawn.std(0).max() > 0


def test_the_search_counts_all_columns():
    columns = {
        f"{name}, 10 steps": [
            {"mean": cells[method].mean + off, "se": 0.0} for cells in paper.TABLE_4.values()
        ]
        for name, method, off in (
            ("baseline", "baseline", 0.0),
            ("noising, soft labels", "noising", 0.0),
            ("noising, hard labels", "noising", 1e3),
            ("IMM exact", "IMM exact", 0.0),
        )
    }
    entry = {"unit": {"normal": [1, 1, 1]}, "numbers": {"columns": columns}}
    result = {"config": {"sizes": list(paper.TABLE_4), "steps": [10]}, "units": [entry]}
    best, other = paper.fits(result)
    assert (best.labels, best.chi2, best.near) == ("soft", 0, 21)
    assert best.rise == pytest.approx(90.78 - 86.99)
    assert (other.labels, other.near) == ("hard", 14) and other.chi2 > 1e5


@pytest.mark.parametrize("method", [m for m in logistic.METHODS if m != "baseline"])
def test_training_is_gradient_descent(method):
    """Two steps of ``train`` are two steps by hand; ρ by run; the first run does not depend on the
    others.
    """
    rho = torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64)
    options = {"generator": generator(4)} if method in STOCHASTIC else {}
    fast = logistic.train(DATA, method, rho, steps=2, lr=0.7, **options)
    if options:
        options["generator"].manual_seed(4)
    term, weights = (
        logistic.METHODS[method](DATA, **options),
        torch.zeros(4, R, dtype=torch.float64),
    )
    for step in range(2):
        x = torch.cat([DATA.short[None], DATA.extended, torch.ones(1, N, R, dtype=torch.float64)])
        residual = torch.sigmoid((weights[:, None] * x).sum(0)) - DATA.label
        primary = (x * residual).mean(1)
        weights = weights - 0.7 * (
            (1 - rho) * primary + rho * logistic.gradient(DATA, weights, term, step)
        )
    torch.testing.assert_close(fast, weights, rtol=1e-10, atol=1e-10)
    if not options:
        number, vector = (
            logistic.train(DATA, method, r, steps=2)
            for r in (0.1, torch.full((R,), 0.1, dtype=torch.float64))
        )
        torch.testing.assert_close(number, vector, rtol=1e-12, atol=1e-12)
    baseline = logistic.train(DATA, "baseline", steps=2, lr=0.7)
    torch.testing.assert_close(fast[:, 0], baseline[:, 0])


@pytest.mark.parametrize("method", ["baseline", "noising", "IMM exact"])
def test_the_loop_that_is_timed_is_a_run_of_the_batched_program(method):
    together = logistic.train(DATA, method, 0.6, steps=5)
    alone = logistic.speed.one_run(PLANE, DATA, 1, method, 0.6, 5)
    torch.testing.assert_close(together[:, 1], alone, rtol=1e-9, atol=1e-9)


def test_the_objective_is_what_training_descends():
    """Its derivative by autograd is the gradient of the two parts; and training lowers it."""
    weights, rho = (
        WEIGHTS.clone().requires_grad_(),
        torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64),
    )
    (slow,) = torch.autograd.grad(logistic.objective(DATA, weights, rho).sum(), weights)
    x = torch.cat([DATA.short[None], DATA.extended, torch.ones(1, N, R, dtype=torch.float64)])
    residual = torch.sigmoid((WEIGHTS[:, None] * x).sum(0)) - DATA.label
    fast = (1 - rho) * (x * residual).mean(1) + rho * logistic.gradient(
        DATA, WEIGHTS, terms.exact(DATA)
    )
    torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-10)
    path = [
        logistic.objective(DATA, w, rho)
        for w, _ in zip(logistic.descend(DATA, "IMM exact", rho), range(50), strict=False)
    ]
    assert (torch.stack(path).diff(dim=0) < 0).all()


def test_float32_follows_float64():
    single = logistic.Data(*(x.float() for x in DATA))
    for method, tolerance in (("IMM exact", 2e-3), ("noising", 2e-3), ("IMM serialized", 2e-3)):
        low, high = (logistic.train(d, method, 0.6, steps=300) for d in (single, DATA))
        torch.testing.assert_close(low.double(), high, rtol=tolerance, atol=tolerance)


def test_extreme_weights_stay_finite():
    for scale in (50.0, 500.0, 5000.0):
        for term in (terms.exact(DATA), terms.noising(DATA), terms.serialized(DATA)):
            assert torch.isfinite(logistic.gradient(DATA, scale * WEIGHTS, term)).all()


@pytest.mark.parametrize(
    "normal", [(1, 1, 1), (1, 2, 1), (2, -1, 3), (1, 0, -2), (1, 0, 0), (0, 1, 1)]
)
def test_the_restricted_model_is_the_share_of_each_slice(normal):
    plane = logistic.Plane.through_centre(*normal)
    x1 = torch.tensor([0.0, 0.13, 0.4, 0.5, 0.77, 1.0], dtype=torch.float64)
    grid = (torch.arange(400, dtype=torch.float64) + 0.5) / 400
    for value, p in zip(x1, plane.restricted(x1), strict=True):
        points = torch.stack(torch.broadcast_tensors(value, grid[:, None], grid), -1)
        assert plane.label(points).mean().item() == pytest.approx(p.item(), abs=2e-3)


def test_accuracy_and_restricted_risk_of_the_truth():
    plane = logistic.Plane()
    sharp = 200 * torch.tensor([[1.0], [1.0], [1.0], [-1.5]], dtype=torch.float64)
    assert plane.accuracy(sharp).item() == 100
    assert plane.accuracy(-sharp).item() == 0
    p = plane.restricted((torch.arange(1000, dtype=torch.float64) + 0.5) / 1000)
    entropy = -(p * p.log() + (1 - p) * (1 - p).log()).mean().item()
    assert plane.restricted_risk(sharp).item() == pytest.approx(entropy, abs=2e-3)
    # a share of 1 is the restricted Bayes rule: correct on three quarters of the points of this
    # plane
    assert plane.accuracy(sharp, share=1.0).item() == pytest.approx(
        100 * p.maximum(1 - p).mean().item(), abs=0.3
    )


def test_data_are_nested_and_repeat():
    assert torch.equal(DATA.first(3).extended, DATA.extended[:, :3])
    assert torch.equal(DATA.repeat(2).short[:, R:], DATA.short)
    assert torch.equal(DATA.weaken(1.0).target, torch.full_like(DATA.target, 0.5))
    assert logistic.schedule(20) == pytest.approx(0.596) and logistic.ratio(1.5) == 0.6


CASES = {
    "n 1": (lambda: PLANE.draw(2, 1), ValueError, "n must be at least 2, got 1"),
    "first 1": (lambda: DATA.first(1), ValueError, r"n must be in \[2, 7\], got 1"),
    "first too many": (lambda: DATA.first(8), ValueError, r"n must be in \[2, 7\], got 8"),
    "runs 0": (lambda: PLANE.draw(0, 5), ValueError, "runs must be at least 1"),
    "k 0": (
        lambda: logistic.train(DATA, "IMM sampled", 0.5, k=0),
        ValueError,
        "k must be at least 1",
    ),
    "method": (
        lambda: logistic.train(DATA, "IMM"),
        ValueError,
        "method must be one of baseline, noising.*got 'IMM'",
    ),
    "option": (
        lambda: logistic.train(DATA, "noising", 0.5, k=3),
        TypeError,
        "'noising' has the options none, got k",
    ),
    "baseline's option": (
        lambda: logistic.train(DATA, "baseline", k=3),
        TypeError,
        "'baseline' has the options none, got k",
    ),
    "rho 1.1": (
        lambda: logistic.train(DATA, "noising", 1.1),
        ValueError,
        r"rho must be .*\[0, 1\].*1.1",
    ),
    "rho nan": (
        lambda: logistic.train(DATA, "noising", float("nan")),
        ValueError,
        "rho must be .*nan",
    ),
    "rho's shape": (
        lambda: logistic.train(DATA, "noising", torch.zeros(2)),
        ValueError,
        r"rho must be .*\(3,\)",
    ),
    "rho's range": (
        lambda: logistic.train(DATA, "noising", torch.full((3,), -0.5)),
        ValueError,
        "rho must be .*-0.5",
    ),
    "lambda < 0": (lambda: logistic.ratio(-0.1), ValueError, "lam must be .*-0.1"),
    "lr 0": (lambda: logistic.train(DATA, "noising", 0.5, lr=0), ValueError, "lr must be"),
    "steps 0": (
        lambda: logistic.train(DATA, "noising", 0.5, steps=0),
        ValueError,
        "steps must be at least 1",
    ),
    "bandwidth": (
        lambda: logistic.train(DATA, "IMM exact", 0.5, bandwidth=0),
        ValueError,
        "bandwidth must be",
    ),
    "period": (
        lambda: logistic.train(DATA, "IMM serialized", 0.5, period=0),
        ValueError,
        "period must be at least 1",
    ),
    "momentum": (
        lambda: logistic.train(DATA, "stale table", 0.5, momentum=2),
        ValueError,
        "momentum must be",
    ),
    "generator": (
        lambda: logistic.train(DATA, "IMM sampled", 0.5, generator=3),
        TypeError,
        "generator must be",
    ),
    "empty class": (
        lambda: logistic.Plane((1.0, 1.0, 1.0), 0.5),
        ValueError,
        r"plane must leave points .* both sides, got g in \[0.5, 3.5\]",
    ),
    "plane nan": (
        lambda: logistic.Plane((1.0, float("nan"), 1.0)),
        ValueError,
        "coefficient of the plane",
    ),
    "plane 2-D": (lambda: logistic.Plane((1.0, 1.0)), ValueError, "normal must hold 3"),
    "coin": (lambda: DATA.weaken(1.5), ValueError, "coin must be"),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input(name):
    call, error, pattern = CASES[name]
    with pytest.raises(error, match=pattern) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_spread():
    values = torch.arange(101.0)
    assert spread(values) == {
        "mean": 50.0,
        "se": round(values.std().item() / 101**0.5, 4),
        "p10": 10.0,
        "p90": 90.0,
    }


def test_a_curve_moved_by_thirty_per_cent_is_read_as_thirty_per_cent():
    sizes = [2, 4, 8, 16, 32]
    noise = torch.randn(1, 200, generator=generator(1), dtype=torch.float64)
    curve = lambda n: 10 * torch.tensor(n, dtype=torch.float64).log()[:, None] + noise  # noqa: E731
    found = extra_data(
        sizes, curve(sizes), sizes, curve([1.3 * n for n in sizes]), 200, generator(2)
    )
    assert list(found) == [
        "2",
        "4",
        "8",
        "16",
        "all sizes",
    ]  # beyond 32 there is no baseline to read, and no tens
    for reading in found.values():
        assert reading["percent"] == pytest.approx(30, abs=0.01)
        assert reading["interval"][0] <= 30.01 and reading["interval"][1] >= 29.99
    with pytest.raises(ValueError, match="baseline and ours must be"):
        extra_data(sizes, curve(sizes)[:2], sizes, curve(sizes), 10, generator(2))


def test_cpu_seconds_are_counted_on_a_cpu():
    experiment = next(e for e in logistic.EXPERIMENTS if e.name == "bench-logistic")
    assert experiment.devices == ("cpu",)


def test_a_reading_outside_the_baseline_is_none():
    sizes, baseline = torch.tensor([2, 4, 8]), torch.tensor([60.0, 70.0, 65.0])
    found = equal_accuracy(sizes, baseline, torch.tensor([50.0, 65.0, 70.1]))
    assert found.isnan().tolist() == [True, False, True] and found[1].item() == pytest.approx(
        8**0.5
    )


def test_the_papers_table():
    assert list(paper.TABLE_4) == [5, 10, 15, 20, 30, 40, 50]
    assert paper.standard_error(paper.TABLE_4[5]["baseline"]) == pytest.approx(0.69, abs=0.01)
    planes = paper.search_planes()
    assert (
        [1, 1, 1] in planes
        and [1, 1, 2] in planes
        and [2, 2, 2] not in planes
        and len(planes) == 44
    )


def small(experiment):
    """An experiment cut down to a second's work."""
    cuts = {
        "runs": 3,
        "steps": 4,
        "draws": 3,
        "loop_steps": 1,
        "repeats": 1,
        "bootstrap": 5,
        "periods": [1, 2],
    }
    config = {k: cuts.get(k, v) for k, v in experiment.scales["ci"].items()}
    if isinstance(experiment.scales["ci"]["steps"], list):
        config["steps"] = [4]
    if experiment.name == "logistic-extra-data":
        config["steps"] = 100  # or the baseline has not risen, and nothing can be read
    return replace(experiment, scales={"full": config})


@pytest.mark.parametrize("name", [e.name for e in logistic.EXPERIMENTS])
def test_every_experiment_runs_and_prints_its_table(name, tmp_path):
    experiment = small(next(e for e in logistic.EXPERIMENTS if e.name == name))
    file = experiments.run(experiment, where=tmp_path)
    result = imm.results.load(file.stem, tmp_path)
    table = experiment.table(result)
    assert len({len(row) for row in table}) == 1 and len(table) > 1
    assert experiments.run(experiment, where=tmp_path) == file
    again = imm.results.load(file.stem, tmp_path)
    if not name.startswith("bench"):
        drop = lambda r: [{**e["numbers"], "cpu_s": 0} for e in r["units"]]  # noqa: E731
        assert drop(again) == drop(result)


if torch.cuda.is_available():

    @pytest.mark.parametrize("method", logistic.METHODS)
    def test_cuda_follows_the_cpu(method):
        there = logistic.Data(*(x.cuda() for x in DATA))
        stochastic = method in STOCHASTIC

        def trained(data: logistic.Data) -> torch.Tensor:
            draws = {"generator": torch.Generator().manual_seed(1)} if stochastic else {}
            return logistic.train(data, method, 0.5, steps=50, **draws)

        torch.testing.assert_close(trained(there).cpu(), trained(DATA), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("difference", "errors", "found"), [(0.3, 1.9, True), (-0.3, -2.1, False), (0.0, 0.0, True)]
)
def test_a_mean_is_inside_by_its_interval_and_the_rounding(difference, errors, found):
    from imm_lib.experiments.logistic import paper

    assert paper.inside({"difference": difference, "errors": errors}) is found
