"""The benchmark: its batched trainings against the library, its protocol, and its errors."""

import json

import pytest
import torch

import imm_lib as imm
from imm_lib import experiments
from imm_lib.experiments.clinic import (
    beside,
    kinds,
    methods,
    protocol,
    runs,
    sources,
    splits,
    suggested,
    training,
    walks,
)
from imm_lib.experiments.clinic.training import Cases, Model, Settings
from imm_lib.experiments.finite import tuning
from imm_lib.experiments.grid.torus import Torus


def problem(seeds=(0, 1), n=20, classes=2, mixed=False):
    """Random cases of R splits, float32."""
    generator = torch.Generator().manual_seed(5)
    runs_, outputs = len(seeds), classes or 1
    short = torch.randn(runs_, n, 1 if mixed else 2, generator=generator)
    rest = torch.randn(runs_, n, 2, generator=generator)
    label = (short[..., 0] + rest[..., 0] > 0).long()
    target = torch.rand(runs_, n, outputs, generator=generator).softmax(-1)
    if not classes:
        label, target = label.float(), target - 0.5
    return Cases(short, rest, label, target)


def settings(runs_, decay=0.0, lam=0.0, share=0.0):
    return Settings(*(torch.full((runs_, 1), float(v)) for v in (decay, lam, share)))


@pytest.mark.parametrize("mixed", [False, True])
def test_the_batched_imm_term_is_the_librarys_risk(mixed):
    cases = problem(mixed=mixed)
    model = Model.of("linear", 2, 0.7, 1, mixed)
    keep = torch.ones(2, 1, 20, dtype=torch.bool)
    keep[:, :, 15:] = False
    near = training.Kernel(cases, keep, model.bandwidth).draw(torch.Generator()).near
    weights = [
        w.detach() for w in training._start(model, cases.inputs().shape[-1], [0, 1], 1, "cpu")
    ]
    weights = [
        w + 0.3 * torch.randn(w.shape, generator=torch.Generator().manual_seed(1)) for w in weights
    ]
    answer = model.kind.answer(training.outputs(weights, cases.inputs()).unsqueeze(2))
    if mixed:
        induced = training._mixed(weights, cases, torch.zeros(2, 1, 1, 20, 2), near, 1)
    else:
        induced = model.kind.average(near, answer)
    found = model.kind.match(cases.target.view(2, 1, 1, 20, 2), induced)[..., :15].mean(-1)
    for run in range(2):
        short, rest = cases.short[run, :15], cases.rest[run, :15]
        own = [w[run, 0] for w in weights]

        def query(asked, extended, short=short, rest=rest, own=own):
            first = asked if mixed else short[extended]
            return (torch.cat([first, rest[extended]], 1) @ own[0] + own[1]).log_softmax(1)

        # the estimator asks for the target of distinct rows: a look-up by value
        rows = {tuple(s.tolist()): t for s, t in zip(short, cases.target[run], strict=False)}

        def target(asked, rows=rows):
            return torch.stack([rows[tuple(s.tolist())] for s in asked])

        contexts = imm.KernelContexts(short, 0.7 * short.shape[1])
        torch.testing.assert_close(
            found[run].squeeze(), imm.ExactIMM(target, contexts)(query, short), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("classes", [3, 0])
def test_distinct_short_contexts_with_their_counts_have_the_risk_of_all_cases(classes):
    generator = torch.Generator().manual_seed(2)
    size, outputs = (2, 3, 150), classes or 1
    # the splits have 4 and 3 distinct short contexts: a row is left over
    group = torch.randint(4, size[::2], generator=generator) % torch.tensor([[4], [3]])
    values = torch.randn(2, 4, 2, generator=generator, dtype=torch.float64)
    targets = torch.rand(2, 4, outputs, generator=generator, dtype=torch.float64).softmax(-1)
    short, target = (torch.take_along_dim(v, group.unsqueeze(-1), 1) for v in (values, targets))
    cases = Cases(short, short, group, target)
    keep = torch.rand(size, generator=generator) < 0.8
    kind = kinds.Classes if classes else kinds.Values
    raw = torch.randn(2, 5, 3, 150, outputs, generator=generator, dtype=torch.float64)
    kernel = training.Kernel(cases, keep, 0.7)
    assert kernel.whole.near.shape == (2, 3, 4, 150)
    risks, gradients = [], []
    for asked in (kernel.draw(generator), kernel._every()):
        answer = raw.clone().requires_grad_()
        induced = kind.average(asked.near, kind.answer(answer))
        rows = asked.cases.unsqueeze(1)
        risk = (rows * kind.match(asked.target[:, None, None], induced)).sum(-1) / rows.sum(-1)
        risks.append(risk.detach())
        gradients.append(torch.autograd.grad(risk.sum(), answer)[0])
    for fast, slow in (risks, gradients):
        torch.testing.assert_close(fast, slow, rtol=1e-12, atol=1e-14)


def test_many_distinct_short_contexts_are_drawn_anew_in_each_step():
    cases = problem(n=training.ROWS + 1)
    kernel = training.Kernel(cases, torch.ones(2, 1, training.ROWS + 1).bool(), 1.0)
    generator = torch.Generator().manual_seed(0)
    first, second = kernel.draw(generator), kernel.draw(generator)
    assert first.near.shape == (2, 1, training.ROWS, training.ROWS + 1)
    assert first.cases.eq(1).all() and not first.near.equal(second.near)
    torch.testing.assert_close(first.near.sum(-1), torch.ones(2, 1, training.ROWS))


def test_an_induced_mean_is_the_weighted_mean():
    weight = torch.rand(2, 3, 4, 5)
    value = torch.randn(2, 6, 3, 5, 1)
    found = kinds.Values.average(weight, value)
    assert found.shape == (2, 6, 3, 4, 1)
    torch.testing.assert_close(found[1, 2, 0, 3, 0], (weight[1, 0, 3] * value[1, 2, 0, :, 0]).sum())


@pytest.mark.parametrize("classes", [2, 0])
@pytest.mark.parametrize("term", ["match", "IMM"])
def test_a_term_of_weight_zero_changes_nothing(term, classes):
    cases = problem(classes=classes)
    model = Model.of("network", classes, 1.0, 20)
    fit = methods.fitter(model, cases, cases, [0, 1])
    plain = fit("none", settings(2, decay=1.0))
    torch.testing.assert_close(plain.test, fit(term, settings(2, decay=1.0)).test)


def test_a_fold_is_answered_by_a_training_that_has_not_seen_it():
    cases = problem()
    model = Model.of("linear", 2, 1.0, 30)
    whole = methods.fitter(model, cases, cases, [0, 1])("none", settings(2, decay=1.0))
    out = ~protocol.folds(20, torch.Generator().manual_seed(0))[2]
    label = cases.label.clone()
    label[0, out] = 1 - label[0, out]
    other = cases._replace(label=label)
    moved = methods.fitter(model, other, cases, [0, 1])("none", settings(2, decay=1.0))
    torch.testing.assert_close(whole.held_out[0, :, out], moved.held_out[0, :, out])
    assert (whole.held_out[0] - moved.held_out[0]).abs().max() > 1e-3


def test_folds_hold_every_case_once():
    keep = protocol.folds(23, torch.Generator().manual_seed(3))
    assert keep.shape == (6, 23) and keep[-1].all()
    assert ((~keep[:-1]).sum(0) == 1).all() and (~keep[:-1]).sum(1).min() >= 4


def test_every_knob_holds_zero_and_all_have_six_values():
    for knob in (protocol.DECAYS, protocol.SHARES, protocol.OFFSETS, protocol.WEIGHTS):
        assert knob[0] == 0 and len(knob) == 6 and list(knob) == sorted(knob)
    assert 1.0 in protocol.WEIGHTS and protocol.cost("IMM") == protocol.cost("offset")


def test_a_mixture_holds_its_share_of_the_target():
    target, answer = torch.tensor([[0.2, 0.8]]), torch.tensor([[0.6, 0.4]]).log()
    mixed = kinds.Classes.mix(answer, target, torch.tensor([0.25]))
    torch.testing.assert_close(mixed.exp(), torch.tensor([[0.5, 0.5]]))
    torch.testing.assert_close(kinds.Classes.mix(answer, target, torch.tensor([0.0])), answer)


def test_the_restricted_regression_is_the_least_squares_line():
    short = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    label = short @ torch.tensor([1.0, -2.0]) + 0.5
    means = sources._restricted(short, label, 0)(short)
    assert means.shape == (200, 1) and (means.squeeze(1) - label).abs().max() < 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "dice, linear, n = 20"}, "task must name a table"),
        ({"task": "wine, forest, n = 20"}, "task must name a model"),
        ({"task": "wine, linear, n = 4"}, "n must be at least 10"),
        ({"task": "wine, linear, n = 150"}, r"n \+ m must be at most"),
    ],
)
def test_a_task_that_is_none_is_refused(change, message):
    config = experiments.find("map-tables").scales["ci"]
    with pytest.raises(ValueError, match=message):
        runs.problem({"task": "wine, linear, n = 20", "seed": 0, **change}, config)
    with pytest.raises(ValueError, match="task must name a target"):
        walks.restricted(Torus(), "best")


@pytest.mark.parametrize("name", ["map-cube", "map-grid", "map-tables"])
def test_a_quick_run_holds_every_method(name, tmp_path):
    experiment = experiments.find(name)
    file = experiments.run(experiment, "ci", where=tmp_path)
    result = imm.results.load(file.stem, tmp_path)
    assert experiment.table(result)[0][0] == "task"
    for entry in result["units"]:
        assert entry["unit"]["task"]
        numbers = entry["numbers"]
        for cell in numbers.get("budgets", {"": numbers.get("methods")}).values():
            known = {*protocol.METHODS, "target"}
            missing = {"IMM, suggested λ"} if name != "map-cube" else set()
            assert known - missing <= set(cell) <= known
            assert len({len(values["loss"]) for values in cell.values()}) == 1


def test_a_walker_without_a_term_is_the_grids_own():
    from imm_lib.experiments.grid import learning

    torus = Torus(5)
    rows = torch.full((5, 4), 0.25, dtype=torch.float64)
    none = {key: torch.zeros(3) for key in ("decay", "lam", "share")}
    ours = walks.learn(torus, rows, "none", none, [1, 4], 7)
    theirs = learning.learn(torus, 3, torch.Generator().manual_seed(7))
    expected = [next(theirs) for _ in range(4)]
    torch.testing.assert_close(ours[0], expected[0].exp())
    torch.testing.assert_close(ours[1], expected[3].exp())
    lam = {**none, "lam": torch.ones(3)}
    matched = walks.learn(torus, rows, "IMM", lam, [4], 7)[0]
    theirs = learning.learn(torus, 3, torch.Generator().manual_seed(7), rows, 1.0)
    torch.testing.assert_close(matched, [next(theirs) for _ in range(4)][3].exp())


def test_the_suggested_weight_is_that_of_worth():
    cases = problem(seeds=(0,), n=12)
    model = Model.of("linear", 2, 1.0, 1)
    weights = [torch.randn(1, 4, 2), torch.randn(1, 1, 2)]
    lam = suggested.suggester(model, cases, 50)(weights)
    assert lam.shape == (1,) and 0 <= lam.item() <= suggested.LARGEST
    last, query, contexts = suggested.last_layer(model, cases, weights, 0, 12)
    again = imm.worth.suggest_lambda(
        query, last, contexts, cases.short[0].double(), torch.arange(12), 50
    )
    assert lam.item() == pytest.approx(again)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("map-tables", {"cases": [["dice", "linear", [20]]]}, "cases' table must be one of"),
        ("map-tables", {"cases": [["wine", "forest", [20]]]}, "cases' model must be one of"),
        ("map-tables", {"cases": [["wine", "linear", [5]]]}, "cases' sizes must be at least 10"),
        ("map-tables", {"repetitions": 3}, "repetitions must be a multiple of block"),
        ("map-cube", {"normals": [[0, 0, 0]]}, "plane must leave points"),
        ("map-cube", {"sizes": [2]}, "sizes must be at least 10"),
        ("map-cube", {"sizes": [200]}, "sizes must be at most 128"),
        ("map-grid", {"targets": ["best"]}, "targets must be one of"),
        ("map-grid", {"budgets": [3, 2]}, "budgets must increase"),
        ("map-text", {"tasks": [["LSTM, all", 100, 1]]}, "tasks must be one of"),
        (
            "map-text",
            {"settings_by_task": {"LSTM, 100 lines": {"widht": 3}}},
            "settings of LSTM, 100 lines must be one of .*, got 'widht'",
        ),
        ("map-decay", {"block": 1}, "block must be at least 2"),
        ("map-frontier", {"k": [0]}, "k must be"),
        ("knowledge-means", {"lam": []}, "lam must have at least one entry"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused_before_work(name, change, message, tmp_path):
    from dataclasses import replace

    experiment = experiments.find(name)
    scales = {"ci": {**experiment.scales["ci"], **change}}
    with pytest.raises(ValueError, match=message):
        experiments.run(replace(experiment, scales=scales), "ci", where=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name",
    [
        "map-judged",
        "map-decay",
        "map-frontier",
        "knowledge-means",
        "knowledge-unlabelled",
        "knowledge-coarse",
    ],
)
def test_the_smaller_experiments_run_and_print(name, tmp_path):
    experiment = experiments.find(name)
    file = experiments.run(experiment, "ci", where=tmp_path)
    table = experiment.table(imm.results.load(file.stem, tmp_path))
    assert len({len(row) for row in table}) == 1 and len(table) > 1


def test_a_term_on_every_other_step_is_as_strong_in_the_mean():
    from imm_lib.experiments.clinic.beside import _every, descend
    from imm_lib.experiments.logistic import terms
    from imm_lib.experiments.logistic import training as plain
    from imm_lib.experiments.logistic.problem import Plane

    data = Plane().draw(3, 8, torch.Generator().manual_seed(0), torch.float64)
    exact = terms.exact(data)
    torch.testing.assert_close(
        descend(data, exact, 0.4, 7), plain.train(data, "IMM exact", 0.4, steps=7)
    )
    third, (short, extended) = _every(exact, 3), plain.logits(data, torch.ones(4, 3).double())
    total = sum(third(short, extended, step)[0] for step in range(6))
    torch.testing.assert_close(total, 6 * exact(short, extended, 0)[0])


def test_every_setting_that_is_tested_is_a_training():
    cases = problem()
    model = Model.of("linear", 2, 1.0, 15)
    one = settings(2, decay=protocol.DECAYS[2], lam=protocol.WEIGHTS[3])
    both = Settings(*(torch.cat([torch.ones(2, 1), value], 1) for value in one))
    loss = beside.tested(model, cases, cases, [0, 1], both, "IMM")
    alone = methods.fitter(model, cases, cases, [0, 1])("IMM", one)
    expected = model.kind.loss(alone.test[:, 0], cases.label).double().mean(-1)
    torch.testing.assert_close(loss[:, 1], expected, rtol=1e-4, atol=1e-5)


def test_text_reads_what_is_stored_and_trains_what_is_not(monkeypatch):
    from imm_lib.experiments.clinic import text

    config = experiments.find("map-text").scales["full"]
    unit = {"task": "LSTM, 1 % of PTB", "lines": 421, "seed": 0}
    stored = text.stored(unit, config, "baseline")
    assert stored is not None and stored["test"] > 1
    assert text.stored({**unit, "seed": 99}, config, "baseline") is None
    other = {**config, "settings": {**config["settings"], "dropout": 0.1}}
    assert text.stored(unit, other, "baseline") is None
    trained = []

    def train(key, config, device):
        trained.append(key["arm"])
        return {"diverged": "here"} if "moving" in key["arm"] else stored

    monkeypatch.setattr(text.language, "run", train)
    found = text.run(unit, {**config, "reuse": False}, "cpu")
    assert trained == config["by_task"][unit["task"]] and found["read"] == []
    assert found["diverged"] == ["moving average, λ = 1"]
    assert "IMM, λ = 1" not in found["methods"] and "plain" in found["methods"]
    with pytest.raises(ValueError, match="task must be one of"):
        text.run({**unit, "task": "novel"}, config, "cpu")


@pytest.mark.needs_data("ptb")
def test_the_arms_of_a_text_have_checkpoints_of_their_own(tmp_path):
    file = experiments.run(experiments.find("map-text"), "ci", where=tmp_path)
    (unit,) = json.loads(file.read_text())["units"]
    numbers = unit["numbers"]
    assert numbers["diverged"] == [] and {"plain", "IMM, λ = 1"} <= numbers["methods"].keys()


def test_a_text_task_has_settings_of_its_own(monkeypatch):
    from imm_lib.experiments.clinic import text
    from imm_lib.experiments.clinic.settings import TEXT, TRANSFORMER

    used = []

    def train(key, config, device):
        used.append(config["settings"])
        return {"test": 9.0, "valid": 9.0, "mixture": {"test": 9.0, "valid": 9.0}} | {
            "bigram": {"test": 9.0}
        }

    monkeypatch.setattr(text.language, "run", train)
    for task in (TRANSFORMER, "LSTM, 1 % of PTB"):
        text.run({"task": task, "lines": 100, "seed": 0}, {**TEXT, "reuse": False}, "cpu")
    own = TEXT["settings_by_task"][TRANSFORMER]
    assert used == [TEXT["settings"] | own] * 3 + [TEXT["settings"]] * 3


def test_the_verdict_counts_wins_harm_and_regret():
    from imm_lib.experiments.clinic import reading

    runs_ = torch.arange(4.0, dtype=torch.float64) * 1e-3
    cell = dict.fromkeys(protocol.METHODS, 1 + runs_)
    cell["IMM"] = 0.9 + runs_.flip(0)
    cell["offset"] = 1.2 + runs_.flip(0)
    cell["interpolation"] = 1.0 + runs_.flip(0)
    found = {v.method: v for v in reading.verdicts({"a": cell, "b": cell})}
    assert (found["IMM"].wins, found["IMM"].losses, found["IMM"].harmed) == (2, 0, 0)
    assert (found["offset"].wins, found["offset"].losses, found["offset"].harmed) == (0, 2, 2)
    assert found["interpolation"].ties == 2 and found["plain"].ties == 2
    assert found["IMM"].regret == 0 and found["IMM"].rank == 1
    assert found["offset"].worst == pytest.approx(30, rel=0.01)
    assert (found["IMM"].sure, found["offset"].sure, found["plain"].sure) == (2, 0, 0)
    changes = reading.changes({"a": cell})
    assert "plain" not in changes and changes["IMM"]["a"].verdict == -1
    assert changes["offset"]["a"].mean == pytest.approx(20, rel=0.01)


def test_imm_stands_beside_its_best_rival():
    from imm_lib.experiments.clinic import reading

    runs_ = torch.arange(4.0, dtype=torch.float64) * 1e-3
    cell = {"plain": 1 + runs_, "IMM": 0.9 + runs_.flip(0), "IMM, λ = 1": 1 + runs_.flip(0)}
    cell |= {"interpolation": 0.8 + runs_, "reverse distillation": 1.1 + runs_}
    found = reading.beside(cell)
    assert found.rival == "interpolation" and found.ours.verdict == -1 and found.lead.verdict == 1
    assert found.told(1) == "IMM -0.1 ± 0.0, interpolation -0.2 ± 0.0"
    assert found.apart(1) == "IMM less interpolation +0.1 ± 0.0"
    counts = [line.rpartition(": ")[2] for line in reading.counted({"a": cell, "b": cell})]
    assert counts == [
        "0 better, 0 worse, 2 level",
        "0 better, 2 worse, 0 level",
        "2 better, 0 worse, 0 level",
        "0 better, 2 worse, 0 level",
    ]


def test_holms_correction_keeps_what_is_far_beyond_chance():
    from imm_lib.experiments.clinic import reading

    chances = dict.fromkeys(range(10), 0.02)
    assert reading.surviving(chances) == set()
    assert reading.surviving({**chances, "far": 1e-4}) == {"far"}
    assert reading.surviving({"a": 0.02, "b": 0.04}) == {"a", "b"}


def few_side_cases(seed):
    try:
        return sources.draw("wine", 30, 2, seed)
    except ValueError as error:
        assert "m must be enough for two classes, got 2 side cases of one" in str(error)


def test_a_class_that_the_side_cases_lack_is_not_impossible_and_one_class_is_too_few():
    drawn = [few_side_cases(seed) for seed in range(20)]
    assert None in drawn and next(filter(None, drawn)).test.target.min() > 0


def shifted(shift, name="breast cancer"):
    return splits.Split(name, 60, 300, 0, shift)


def test_a_shifted_population_surprises_its_target_and_leaves_it_behind():
    good, bad = shifted(0.0), shifted(1.0)
    assert torch.equal(good.train.short, bad.train.short)
    z = [imm.premise.surprise(s.target(s.train.short), s.train.label).z for s in (good, bad)]
    assert abs(z[0]) < 4 < z[1]
    folds = [good.fit(0.0, fold) for fold in range(5)]
    assert good.lead(folds) > bad.lead(folds) and bad.lead(folds) < -2


@pytest.mark.parametrize(
    ("name", "shift", "message"),
    [
        ("breast cancer", 2.0, "shift"),
        ("diabetes", 0.5, "shift must be 0 for diabetes"),
        ("iris", 0.0, "must name a table"),
    ],
)
def test_no_table_is_shifted_by_what_cannot_be(name, shift, message):
    with pytest.raises(ValueError, match=message):
        sources.draw(name, 20, 60, 0, shift)


@pytest.fixture(scope="module")
def split():
    return splits.Split("wine", 25, 60, seed=0)


def test_a_splits_fit_has_no_gradient_left(split):
    for lam in (0.0, 3.0):
        theta, part = split.fit(lam).requires_grad_(), split.others()
        (gradient,) = torch.autograd.grad(split.objective(theta, part, lam), theta)
        assert gradient.abs().max() < 1e-4
    assert sum(len(split.part(i).label) for i in range(5)) == 25 == len(part.label)
    assert len(split.others(1).label) == 20


def test_a_narrow_kernel_is_reverse_distillation(split):
    theta, part = split.fit(0.0), split.others()
    contexts = imm.KernelContexts(part.short, 1e-4)
    risk = imm.ExactIMM(split.target, contexts)(split.query(theta, part), part.short)
    log_q = split.log_q(theta, part.short, part.rest)
    reverse = imm.ReverseKD(split.target)(log_q, part.short)
    torch.testing.assert_close(risk, reverse, atol=1e-4, rtol=1e-4)


def test_the_slope_is_a_difference_quotient(split):
    step = 0.05
    high, low = (split.held_out(split.fit(2.0 * 2.718281828**x, 0), 0) for x in (step, -step))
    slope = split.slope(torch.tensor([2.0]))
    torch.testing.assert_close(slope, (high - low) / (2 * step), rtol=0.02, atol=0.0)


def test_every_rule_chooses_a_weight(split):
    chosen = {name: lam.item() for name, lam in tuning.chosen(split).items()}
    assert all(0 <= lam <= tuning.LARGEST for lam in chosen.values())
    assert chosen["paper's schedule"] == pytest.approx(0.5405 / 0.4595, rel=1e-3)
    assert 0.3 < chosen["plug-in"] < 10


def test_a_split_needs_classes():
    with pytest.raises(ValueError, match="name must be of a table of classes, got 'diabetes'"):
        splits.Split("diabetes", 20, 60, 0)
