"""Every chapter that asks for a device computes there: a forgotten ``.to(device)`` fails here,
without a GPU.
"""

import functools

import pytest
from chapters import BOOK, Failed, numbers, run, source
from second import KIND, SECOND

import imm_lib as imm
from imm_lib.experiments import logistic
from imm_lib.experiments.finite import penalties
from imm_lib.experiments.logistic import training

# What keeps a chapter's device path and makes it quick: pairs of old and new text. Assertions are
# left out, since what they claim holds at the chapter's own sizes.
SMALL = {
    "02": [
        ("for _ in range(400):", "for _ in range(2):"),
        ("runs, tables = 300, {}", "runs, tables = 10, {}"),
        ("steps = range(1, 401)", "steps = range(1, 3)"),
    ],
    "09": [
        ("for _ in range(200):", "for _ in range(2):"),
        ("for seed in range(20):", "for seed in range(2):"),
        ("for _ in range(1000)", "for _ in range(5)"),
        ("clinic.settings.TABLES", '{**clinic.settings.TABLES, "steps": 2, "block": 2}'),
    ],
    "11": [
        ("torch.rand(400_000, 3", "torch.rand(400, 3"),
        ("by_hand(few, run, 0.6, 200)", "by_hand(few, run, 0.6, 2)"),
        ('"IMM exact", 0.6, steps=200)', '"IMM exact", 0.6, steps=2)'),
        ("data = plane.draw(100, 50", "data = plane.draw(4, 50"),
        ("torch.randint(100, (4000, 100)", "torch.randint(4, (4000, 4)"),
        (
            "weights = logistic.train(data.first(n), method, rho)",
            "weights = logistic.train(data.first(n), method, rho, steps=2)",
        ),
        ('"IMM exact", rho, bandwidth=h)', '"IMM exact", rho, bandwidth=h, steps=2)'),
    ],
    "12": [
        ("lam=0.25, epochs=20)", "lam=0.25, epochs=3)"),
        ("itertools.islice(steps, 18, None)", "itertools.islice(steps, 1, None)"),
        ("[1, *range(10, 201, 10)]", "[1, 2, 3]"),
        ("there, 30, source", "there, 2, source"),
    ],
    "17": [
        ("data = plane.draw(100, 50", "data = plane.draw(4, 50"),
        ("rhos.repeat_interleave(100)", "rhos.repeat_interleave(4)"),
        (
            "logistic.train(*every).view(4, len(rhos), 100)",
            "logistic.train(*every, steps=2).view(4, len(rhos), 4)",
        ),
        ("for steps in (3000, 10_000)", "for steps in (3, 10)"),
        ("plane.draw(2, 20_000", "plane.draw(2, 20"),
        ("for _ in range(1000):", "for _ in range(2):"),
        (
            'logistic.train(many, "reverse-KD", logistic.ratio(1.5))',
            'logistic.train(many, "reverse-KD", logistic.ratio(1.5), steps=2)',
        ),
    ],
    "18": [
        ("data = plane.draw(100, 50", "data = plane.draw(4, 50"),
        ("data.first(n), method, rho, **own)", "data.first(n), method, rho, steps=2, **own)"),
        ("(few, method, rho, **own)", "(few, method, rho, steps=2, **own)"),
        ("torch.zeros(4, 100, device=device)", "torch.zeros(4, 4, device=device)"),
        ("range(1, 1001)", "range(1, 51)"),
    ],
    "07": [
        ("data = plane.draw(100, 50", "data = plane.draw(4, 50"),
        (
            'logistic.train(data.first(n), "baseline")',
            'logistic.train(data.first(n), "baseline", steps=2)',
        ),
        (
            "weights = logistic.train(together.first(n), method, rho(n))",
            "weights = logistic.train(together.first(n), method, rho(n), steps=2)",
        ),
    ],
    "19": [
        ("100, source, target", "2, source, target"),
        ("itertools.islice(steps, 99, None)", "itertools.islice(steps, 2, None)"),
        ("for _ in range(40)", "for _ in range(10)"),
    ],
    "20": [
        ("itertools.islice(steps, 299, None)", "itertools.islice(steps, 2, None)"),
        ("zip(range(1, 201), steps", "zip(range(1, 26), steps"),
        ("zip(range(1, 501), steps", "zip(range(1, 26), steps"),
    ],
    "14": [
        ("((4000, 2000, 4000))", "((400, 200, 400))"),
        ("epochs=18", "epochs=1"),
        ("for seed in (0, 1):", "for seed in (0,):"),
    ],
    "21": [
        ("((4000, 2000, 4000))", "((300, 200, 300))"),
        ("epochs=8", "epochs=1"),
        ("[1, 2, 4, 8]", "[1, 2]"),
    ],
    "15": [
        ("examples(400, 1, only=1), examples(300, 3)", "examples(40, 1, only=1), examples(40, 3)"),
        ("epochs=30, batch=40", "epochs=1, batch=40"),
        (
            "large = model.encode(examples(5000, 4, only=1))",
            "large = model.encode(examples(200, 4, only=1))",
        ),
        ("places=300, k=10", "places=9, k=2"),
        ("for seed in range(3)", "for seed in range(1)"),
        ("epochs=15,", "epochs=1,"),
        ("places=10,", "places=2,"),
        ("[i] * 3", "[i]"),
    ],
    "08": [
        ("for _ in range(200):", "for _ in range(2):"),
        ("torch.empty(120, 10)", "torch.empty(3, 10)"),
        ("for step in range(120):", "for step in range(3):"),
    ],
    "06": [
        ("torch.logspace(-1, 1.5, 16)", "torch.logspace(-1, 1.5, 2)"),
        (
            "tuning.chosen(clinic).items()",
            '{"none": torch.zeros(1), "plug-in": clinic.plug_in()}.items()',
        ),
        ("firsts = (0.0, 0.3, 1.0, 3.0, 10.0)", "firsts = (0.0, 1.0)"),
        ("for seed in range(5)]", "for seed in range(1)]"),
    ],
    "22": [
        (
            "in {**divergences.NAMED, **further}.items()",
            'in {"cross-entropy": divergences.NAMED["cross-entropy"], **further}.items()',
        ),
        ("torch.randint(500, (4000, k)", "torch.randint(500, (40, k)"),
    ],
    "23": [
        ("sample(20_000, seed=99)", "sample(500, seed=99)"),
        ("max_iter=60", "max_iter=2"),
        ("sample(5000, seed=98)", "sample(50, seed=98)"),
        ("torch.zeros(20, len(SETS))", "torch.zeros(2, len(SETS))"),
        ("for run in range(20):", "for run in range(2):"),
        ("lm.topics(4000, s)", "lm.topics(400, s)"),
        ("epochs=12", "epochs=1"),
    ],
    "16": [
        ("for _ in range(300):", "for _ in range(2):"),
        ("for seed in range(20):", "for seed in range(2):"),
        ("for bandwidth in (0.1, 0.3, 1.0)", "for bandwidth in (1.0,)"),
        ("{**clinic.settings.TABLES,", '{**clinic.settings.TABLES, "steps": 10, "block": 2,'),
    ],
    "10": [
        ("epochs=40", "epochs=1"),
        ("*known, seeds=5", "*known, seeds=2"),
        ("train_s, seeds=5", "train_s, seeds=2"),
        ("for seed in range(5)", "for seed in range(2)"),
        ("size=2048, steps=25", "size=64, steps=2"),
        ("(3000, 30000, 3000)", "(1100, 3000, 300)"),
        ("epochs=15", "epochs=1"),
        ("for seed in range(3)", "for seed in range(2)"),
        ("range(1, 16)", "range(1, 2)"),
        ("range(150)", "range(2)"),
    ],
    "04": [("DECAYS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)", "DECAYS = (0.1,)")],
}


def run_there(number: str, changes: list[tuple[str, str]]) -> None:
    """Run a chapter on the second device; raises Failed, or AssertionError where the CPU works."""
    mode = run(number, changes)
    here, there = (sum(mode.computed[kind].values()) for kind in ("cpu", KIND))
    # chapter 2 computes small worlds by hand, and only its last section trains; the exercises of
    # chapter 12 plan exactly, which is work for a CPU
    least = 0 if number in ("02", "12") else here
    assert there > least, f"the CPU computed {here}, the device {there}"


@pytest.fixture(autouse=True)
def a_second_device(monkeypatch):
    monkeypatch.setattr(imm, "device", lambda: SECOND)
    # a slider draws every picture; one will do
    monkeypatch.setattr(imm.plotting, "Slider", lambda draw, values, *rest: draw(values[0]))

    monkeypatch.setattr(penalties, "minimise", functools.partial(penalties.minimise, steps=2))

    # gradients by hand are none of autograd's
    descend = training.descend

    def descended(data, *args, **options):
        assert data.short.device == SECOND, "a training's data are on the CPU"
        return descend(data, *args, **options)

    monkeypatch.setattr(training, "descend", descended)
    monkeypatch.setattr(logistic, "descend", descended)


@pytest.mark.parametrize("number", numbers())
def test_a_chapter_computes_on_its_device(number):
    run_there(number, SMALL.get(number, []))


def test_the_chapters_that_train_ask_for_a_device():
    found = numbers()
    assert set(found) >= {f"{n:02d}" for n in (2, 4, *range(6, 13), *range(14, 24))}
    for number in found:
        (path,) = BOOK.glob(f"{number}-*.ipynb")
        assert source(path).count("imm.device()") == 1


# One step forgotten on the way to the device, in chapters that are quick.
FORGOTTEN = [
    ("17", "50, generator).to(device)", "50, generator)"),
    ("17", "draw_many).to(device)", "draw_many)"),
    ("18", "average = average.to(device)", ""),
    ("20", "grid.Torus().to(device)", "grid.Torus()"),
    ("08", "torch.nn.Sequential(*layers).to(device)", "torch.nn.Sequential(*layers)"),
    ("08", "shown = (part.cpu().numpy()", "shown = (part.numpy()"),
    ("04", "dtype=x.dtype).to(x.device)", "dtype=x.dtype)"),
    ("02", "target = nurse.float().to(device)", "target = nurse.float()"),
    ("10", "data.target.to_numpy()).to(device)", "data.target.to_numpy())"),
]


@pytest.mark.parametrize(("number", "old", "new"), FORGOTTEN)
def test_a_forgotten_step_is_found(number, old, new):
    with pytest.raises((Failed, AssertionError)) as found:
        run_there(number, [*SMALL.get(number, []), (old, new)])
    told = "same device|on the CPU|the CPU computed|is on cpu|to numpy|move them to one device"
    assert found.match(told)
