"""The experiment of chapter 4: honest partitions, fits that agree with scikit-learn, choices blind
to the test.
"""

import dataclasses

import pytest
import torch

import imm_lib as imm
from imm_lib import experiments
from imm_lib.experiments import sensors

CASES = {"old": 200, "valid": 100, "test": 189}
SMALL = experiments.find("sensors").scales["ci"] | {
    "decays": [0.03, 0.3],
    "lambdas": [0.3, 3.0],
    "seeds": 2,
}


@pytest.fixture(scope="module")
def task():
    return sensors.task("worst radius", 20, 0, **CASES)


def test_the_parts_of_a_partition_are_disjoint_and_reproducible(task):
    parts = [task.old, task.new, task.valid, task.test]
    together = torch.cat(parts)
    assert [len(part) for part in parts] == [200, 20, 100, 189]
    assert len(together.unique()) == len(together)
    again = sensors.task("worst radius", 20, 0, **CASES)
    assert torch.equal(again.new, task.new) and torch.equal(again.x, task.x)
    assert not torch.equal(sensors.task("worst radius", 20, 1, **CASES).test, task.test)


def test_a_larger_sample_extends_the_smaller_one(task):
    larger = sensors.task("worst radius", 40, 0, **CASES)
    assert set(task.new.tolist()) < set(larger.new.tolist())
    assert torch.equal(larger.test, task.test)


def test_the_sensor_is_a_column_of_the_inputs_and_the_target_reads_only_it(task):
    assert torch.equal(task.x[:, task.sensor], task.s)
    rows = task.target(task.s)
    assert torch.allclose(rows.sum(1), torch.ones(len(rows), dtype=rows.dtype))
    assert sensors.scores(rows[task.old].log(), task.y[task.old])["accuracy"] > 0.85


@pytest.mark.parametrize(
    ("sensor", "n", "message"),
    [
        ("temperature", 20, "sensor must be one of mean radius"),
        ("worst radius", 81, "at most 569, got 570"),
    ],
)
def test_bad_tasks_are_refused(sensor, n, message):
    with pytest.raises(ValueError, match=message):
        sensors.task(sensor, n, 0, **CASES)


def test_the_fit_agrees_with_scikit_learn(task):
    from sklearn.linear_model import LogisticRegression

    x, y, decay = task.x[task.new], task.y[task.new], 0.05
    model, _ = sensors.fit(x, y, decay)
    # two columns ±w/2 pay half of what scikit-learn's one column w pays
    peer = LogisticRegression(C=2 / (len(x) * decay), tol=1e-10, max_iter=1000).fit(x, y)
    assert torch.allclose(model(task.x).exp(), torch.tensor(peer.predict_proba(task.x)), atol=1e-4)


def test_an_offset_under_a_heavy_decay_is_the_target_up_to_its_bias(task):
    x, y, offset = task.x[task.new], task.y[task.new], task.target(task.s[task.new]).log()
    _, logits = sensors.fit(x, y, 1e6, offset=offset)
    assert torch.allclose(logits(x) - logits(x)[0], torch.zeros(2, dtype=x.dtype), atol=1e-4)


def test_the_penalty_is_the_risk_by_enumeration(task):
    model, _ = sensors.fit(task.x[task.new], task.y[task.new], 0.1)
    x, s, bandwidth = task.x[task.new], task.s[task.new], SMALL["bandwidth"]
    risk = 0.0
    for own in s:
        weights = (-(s - own).abs() / bandwidth).exp()
        mixed = x.clone()
        mixed[:, task.sensor] = own
        induced = (weights / weights.sum()) @ model(mixed).exp()
        risk -= (task.target(own[None])[0] * induced.log()).sum() / len(s)
    penalties = sensors.imm_penalties(task, task.new, SMALL)
    assert penalties["IMM"](model).item() == pytest.approx(risk.item(), abs=1e-12)
    assert len({round(penalty(model).item(), 6) for penalty in penalties.values()}) == len(
        penalties
    )


def test_settings_are_chosen_by_validation_and_never_by_the_test_cases(task):
    methods, splits = ["interpolation", "IMM"], [(task.new, task.valid)]
    honest = sensors.runs._choose(task, splits, SMALL, methods)
    found = sensors.candidates(task, task.new, honest["decay"], SMALL, methods)
    for method, key in honest["chosen"].items():
        losses = {
            k: sensors.scores(f(task.valid), task.y[task.valid])["loss"]
            for k, f in found[method].items()
        }
        assert losses[key] == min(losses.values())
    flipped = task.y.clone()
    flipped[task.test] = 1 - flipped[task.test]
    other = sensors.runs._choose(dataclasses.replace(task, y=flipped), splits, SMALL, methods)
    assert (other["decay"], other["chosen"]) == (honest["decay"], honest["chosen"])
    assert other["test"] != honest["test"]


def test_a_small_run_has_its_table(tmp_path):
    small = dataclasses.replace(experiments.find("sensors"), scales={"ci": SMALL})
    file = experiments.run(small, "ci", where=tmp_path)
    result = imm.results.load(file.stem, tmp_path)
    assert len(result["units"]) == 2
    header, *table = small.table(result)
    assert [row[2] for row in table] == list(result["units"][0]["numbers"]["test"])
    assert all(len(row) == len(header) for row in table)


def test_the_interval_is_students():
    mean, half = imm.results.mean_interval([1.0, 2.0, 3.0])
    assert (mean, half) == (pytest.approx(2.0), pytest.approx(4.302653 / 3**0.5, abs=1e-5))
