"""Real side information: splits, targets, training and its errors; rules that choose λ."""

import pytest
import torch

import imm_lib as imm
from imm_lib.experiments.finite import LogitWorld
from imm_lib.experiments.finite import tuning as rules
from imm_lib.experiments.real import readings, sources, training, tuning


@pytest.fixture(scope="module")
def problem():
    return sources.draw("wine", 30, 60, seed=0)


def test_a_split_shares_no_example(problem):
    features, _, seen = sources.source("wine")
    assert problem.train.short.shape == (30, len(seen)) and len(problem.test.label) == 178 - 90
    rows = torch.cat([torch.cat(part[:2], 1) for part in (problem.train, problem.test)])
    assert len(rows.unique(dim=0)) == len(rows) == 118 and rows.shape[1] == features.shape[1]
    torch.testing.assert_close(problem.train.rest.mean(0), torch.zeros(11), atol=1e-5, rtol=0)


def test_the_target_is_a_distribution_and_knows_something(problem):
    rows = problem.target(problem.test.short)
    torch.testing.assert_close(rows.sum(1), torch.ones(len(rows)))
    assert rows.min() > 0 and (rows.argmax(1) == problem.test.label).double().mean() > 0.6
    few = next(p for p in map(few_side_examples, range(20)) if p)  # a side sample may lack a class
    assert few.target(problem.test.short).min() > 0


def few_side_examples(seed):
    try:
        return sources.draw("wine", 30, 2, seed)
    except ValueError as error:
        assert "m must be enough for two classes, got 2 side examples of one" in str(error)


def test_one_class_is_too_few():
    assert None in map(few_side_examples, range(20))


def test_a_shifted_population_surprises_its_target():
    z = [
        imm.premise.surprise(p.target(p.train.short), p.train.label).z
        for p in map(shifted, (0.0, 1.0))
    ]
    assert abs(z[0]) < 4 < z[1]


def shifted(shift):
    return sources.draw("breast cancer", 60, 300, seed=0, shift=shift)


def test_pixels_return_to_their_places():
    problem = sources.draw("digits", 20, 100, seed=0)
    network = training.Network("convolutions", problem)
    pixels = torch.arange(64.0)
    seen = sources.source("digits")[2]
    rest = [i for i in range(64) if i not in seen]
    whole = torch.cat([pixels[seen], pixels[rest]])
    assert whole[network.place].tolist() == pixels.tolist()


@pytest.mark.parametrize("kind", ["logistic", "network"])
def test_every_method_trains_and_repeats(problem, kind):
    losses = {}
    for method in training.METHODS:
        twice = [
            training.evaluate(training.train(problem, kind, method, steps=20), problem)
            for _ in range(2)
        ]
        assert twice[0] == twice[1]
        losses[method] = twice[0]["loss"]
    assert len(set(losses.values())) == 3
    alone = training.evaluate(training.train(problem, kind, "IMM", lam=0.0, steps=20), problem)
    assert alone["loss"] == pytest.approx(
        losses["baseline"], abs=0.05
    )  # up to the generator's other draws


def test_a_narrow_kernel_is_reverse_distillation(problem):
    narrow = training.train(problem, "logistic", "IMM", bandwidth=1e-4, steps=30)
    reverse = training.train(problem, "logistic", "reverse-KD", steps=30)
    torch.testing.assert_close(narrow.body.weight, reverse.body.weight, atol=1e-3, rtol=1e-3)


def test_interpolation_at_one_is_the_target(problem):
    network = training.train(problem, "logistic", steps=2)
    rows = problem.target(problem.test.short)
    accuracy = (rows.argmax(1) == problem.test.label).double().mean().item()
    assert training.evaluate(network, problem, 1.0)["accuracy"] == pytest.approx(accuracy)


def test_bad_input(problem):
    with pytest.raises(ValueError, match="source must be one of breast cancer"):
        sources.source("iris")
    with pytest.raises(ValueError, match=r"n \+ m must be at most 160 for wine, got 100 \+ 70"):
        sources.draw("wine", 100, 70, 0)
    with pytest.raises(ValueError, match="shift"):
        sources.draw("wine", 10, 10, 0, shift=2.0)
    with pytest.raises(ValueError, match="method must be one of"):
        training.train(problem, "logistic", "noising")
    with pytest.raises(ValueError, match="kind must be"):
        training.train(problem, "tree")


@pytest.fixture(scope="module")
def data():
    return rules.Data(LogitWorld.draw(), 100, "inf", 6, torch.Generator().manual_seed(0))


def test_every_rule_gives_a_weight_per_data_set(data):
    for name, rule in rules.RULES.items():
        lam = rule(data)
        assert lam.shape == (6,) and (lam >= 0).all() and (lam <= rules.LARGEST + 1e-4).all(), name


def test_the_validation_gradient_is_that_of_the_held_out_loss(data):
    """By finite differences of whole fits; one step of Adam moves log λ against its sign."""
    counts = data.counts([1, 2, 3, 4])

    def held_out(log_lam):
        theta = data.fit(counts, torch.full((6,), log_lam).exp())
        return rules.value(data.world.features, data.folds[0], (), theta)

    slope = held_out(1e-3) - held_out(-1e-3)
    moved = rules.validation_gradient(data, steps=1, rate=0.1).log()
    assert (moved.sign() == -slope.sign()).all()


def test_a_weight_per_data_set_is_that_weight(data):
    counts = data.counts([0, 1, 2, 3, 4])
    lam = torch.tensor([0.0, 0.5, 1.0, 2.0, 4.0, 8.0])
    together = data.fit(counts, lam)
    for i, value in enumerate(lam.tolist()):
        torch.testing.assert_close(together[i], data.fit(counts, value)[i], atol=1e-7, rtol=1e-7)


@pytest.fixture(scope="module")
def clinic():
    return tuning.Clinic("wine", 25, 60, seed=0)


def test_a_clinics_fit_has_no_gradient_left(clinic):
    for lam in (0.0, 3.0):
        theta = clinic.fit(lam).requires_grad_()
        part = clinic.without(None)
        (gradient,) = torch.autograd.grad(clinic.objective(theta, part, lam), theta)
        assert gradient.abs().max() < 1e-4
    assert sum(len(clinic.fold(i).label) for i in range(rules.FOLDS)) == 25 == len(part.label)
    assert len(clinic.without(1).label) == 20


def test_the_hypergradient_is_a_difference_quotient(clinic):
    step = 0.05
    high, low = (
        clinic.cross_entropy(clinic.fit(2.0 * 2.718281828**sign, 0), clinic.fold(0)).item()
        for sign in (step, -step)
    )
    assert tuning.hypergradient(clinic, 2.0) == pytest.approx((high - low) / (2 * step), rel=0.02)


def test_every_rule_chooses_a_weight(clinic):
    for name, rule in tuning.RULES.items():
        lam = rule(clinic)
        assert 0 <= lam <= rules.LARGEST, name
    assert tuning.RULES["paper's schedule"](clinic) == pytest.approx(0.5405 / 0.4595, rel=1e-3)
    assert 0.3 < tuning.RULES["plug-in"](clinic) < 10


def test_settings_are_chosen_on_the_other_half_of_the_splits():
    def run(one, three):
        reads = {"baseline": 1.0, "IMM, λ = 1": one, "IMM, λ = 3": three}
        return {
            "methods": {name: {"loss": loss, "accuracy": -loss} for name, loss in reads.items()}
        }

    runs = [
        run(0.1, 0.5),
        run(0.9, 0.2),
        run(0.1, 0.6),
        run(0.8, 0.3),
    ]  # even splits like λ = 1, odd ones λ = 3
    assert readings.chosen(runs, "IMM").tolist() == [0.5, 0.9, 0.6, 0.8]
    assert readings.chosen(runs, "IMM", "accuracy").tolist() == [-0.5, -0.9, -0.6, -0.8]
    assert readings.chosen(runs, "baseline").tolist() == [1.0] * 4
    for bad in (("ridge", runs), ("IMM", runs[:1])):
        with pytest.raises(ValueError, match="family must be"):
            readings.chosen(bad[1], bad[0])


def test_a_gain_leaves_out_what_it_is_told_to():
    def run(narrow, wide):
        reads = {"baseline": 1.0, "IMM, bandwidth 0.03": narrow, "IMM, bandwidth 0.3": wide}
        return {"methods": {name: {"loss": loss, "accuracy": 0.0} for name, loss in reads.items()}}

    runs = [run(0.1, 0.6), run(0.1, 0.8)]
    assert readings.gain(runs, "IMM")[0] == pytest.approx(-0.9)
    mean, half = readings.gain(runs, "IMM", leave_out="0.03")
    assert (mean, half) == pytest.approx(imm.results.mean_interval([-0.4, -0.2]))
    assert readings.mean(runs, "IMM, bandwidth 0.3") == pytest.approx(0.7)


def test_too_few_examples_are_refused_before_anything_is_fitted():
    with pytest.raises(
        ValueError, match=r"n must be at least 2, as features are standardised, got 1"
    ):
        sources.draw("wine", 1, 60, seed=0)
    with pytest.raises(ValueError, match=r"n must be at least 5, one example for each fold"):
        tuning.Clinic("wine", 4, 60, seed=0)


def test_harm_is_counted_by_bins():
    measure, change = torch.tensor([[0.5, 1.0, 1.5, 3.0]]), torch.tensor([[0.1, -0.3, 0.2, 0.4]])
    found = readings.harm(measure, change, [0, 1, 4])
    torch.testing.assert_close(found, torch.tensor([[2, 0.5, -0.1, 0.1], [2, 1.0, 0.3, 0.4]]))


def test_left_out_pairs_tell_a_good_target_from_one_of_another_population():
    good, bad = (training.left_out(shifted(share), "logistic", 5, steps=50) for share in (0.0, 1.0))
    assert good > bad and bad < -2
    for folds in (0, 1, 31):
        with pytest.raises(ValueError, match="folds"):
            training.left_out(shifted(0.0), "logistic", folds)


def test_shifted_runs_are_read_by_data_and_share():
    def entry(share, seed, loss):
        numbers = {
            "methods": {
                "baseline": {"loss": 1.0, "accuracy": 0.0},
                "IMM, λ = 1": {"loss": loss, "accuracy": 0.0},
            }
        }
        unit = {"data": "wine", "kind": "logistic", "n": 40, "shift": share, "seed": seed}
        return {
            "unit": unit,
            "numbers": {**numbers, "surprise": 10 * share + seed, "lead": share - seed},
        }

    units = [entry(share, seed, 1 + share + seed) for share in (0.0, 0.5) for seed in range(3)]
    found = readings.by_shift({"units": units})["wine"]
    assert found.share.tolist() == [[0.0], [0.5]]
    assert found.z.tolist() == [[0.0, 1.0, 2.0], [5.0, 6.0, 7.0]]
    assert found.lead.tolist() == [[0.0, -1.0, -2.0], [0.5, -0.5, -1.5]]
    torch.testing.assert_close(
        found.change, torch.tensor([[0.0, 1.0, 2.0], [0.5, 1.5, 2.5]], dtype=torch.float64)
    )
