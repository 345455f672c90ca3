"""The front page's box: what holds, what does not, what was not run, from the stored results.

A comparison *holds* where IMM is ahead of training without a target and of its best rival, both by
a 95 % interval; every rival has its settings chosen as IMM has. All other comparisons stand under
*does not hold*, with the reason. Every number is printed in the chapter that its line links to: a
test looks.
"""

import math
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import torch

from imm_lib import results, tabular
from imm_lib.experiments.clinic import reading
from imm_lib.experiments.logistic import paper as logistic
from imm_lib.experiments.reading import paired, rows
from pages.execution import stored
from pages.reproduction import FIRST, JUDGED, NORMAL, numbers

Interval = tuple[float, float]
"""A mean and half of its 95 % interval."""


class Line(NamedTuple):
    """One comparison."""

    text: str  # with its numbers
    chapter: str  # file name, without suffix
    none: Interval  # IMM less training without a target; below 0 is better
    rival: Interval  # IMM less the best rival, in the same direction

    @property
    def holds(self) -> bool:
        """Whether IMM is ahead of both by more than chance."""
        return all(sum(interval) < 0 for interval in (self.none, self.rival))


def _signed(interval: Interval, digits: int) -> str:
    return f"{interval[0]:+.{digits}f} ± {interval[1]:.{digits}f}"


def _apart(first: dict, second: dict) -> Interval:
    """First less second of two independent means with their standard errors, as an interval."""
    error = math.hypot(first["se"], second["se"])
    return first["mean"] - second["mean"], NORMAL * error


def _less(first: torch.Tensor, second: torch.Tensor) -> Interval:
    return results.mean_interval(first - second)


def _reversed(interval: Interval) -> Interval:
    return -interval[0], interval[1]


MAP = ("map-tables", "map-large", "map-cube", "map-grid", "map-text")
LEADING = {
    "cube 1 1 1, n = 10": "Logistic regression on the cube, 10 points",
    "breast cancer, linear, n = 20": (
        "Tumours (`breast cancer`, a target of two measurements), 20 cases"
    ),
    "wine, linear, n = 20": "Wines (`wine`), 20 cases",
    "anes96, linear, n = 20": "Voters (`anes96`), 20 cases",
    "diabetes, linear, n = 20": "Diabetes (`diabetes`), 20 cases",
    "fair, linear, n = 20": "Marriages (`fair`), 20 cases",
    "digits, network, n = 50": (
        "Digits, with a target that sees a quarter of each picture; 50 pictures"
    ),
    "grid, split target, 50 trials": (
        "A walker on the grid by a policy that knows one coordinate, 50 trials"
    ),
    "LSTM, 3 % of PTB": "An LSTM on 3 % of the Penn Treebank",
    "transformer, 3 % of PTB": "A transformer on the same 3 %",
}
"""Of every source of the map its smallest size, by a linear model if there is one, whatever it
says; of the text the size on which the weights were tuned.
"""


def _cells() -> dict:
    """All tasks of the map that are stored."""
    return reading.tasks(*(result for name in MAP if (result := stored(name))))


def _map_rows() -> Iterator[Line]:
    """IMM beside its best rival, all tuned alike."""
    cells = _cells()
    for task, what in LEADING.items():
        if task not in cells:
            continue
        found = reading.beside(cells[task])
        runs = len(cells[task]["plain"])
        yield Line(
            f"{what}, {runs} repetitions, test loss less plain training's: {found.told()}; "
            f"{found.apart()}.",
            "09-what-to-use",
            (found.ours.mean, found.ours.half),
            (found.lead.mean, found.lead.half),
        )


def _diagnoses() -> Iterator[Line]:
    """Twenty cases, settings chosen by folds of these same cases."""
    if (result := stored("sensors")) is None:
        return
    sensor, n = "worst radius", result["config"]["cross_validated"][0]
    here = {"sensor": sensor, "n": n}
    entries = [e["numbers"] for e in result["units"] if here.items() <= e["unit"].items()]
    methods = ("reverse-KD", "interpolation", "offset", "IMM")
    loss = {
        method: torch.tensor(
            [e["cross_validated"]["test"][method]["loss"] for e in entries], dtype=torch.float64
        )
        for method in ("baseline", *methods)
    }
    gain = {method: _less(loss[method], loss["baseline"]) for method in methods}
    best = min(methods[:-1], key=lambda method: gain[method][0])
    lead = _less(loss["IMM"], loss[best])
    yield Line(
        f"Tumours, with a target that reads one measurement; {n} cases, settings chosen by five "
        f"folds of the same cases, {len(entries)} partitions, test loss less that without a "
        f"target: IMM {_signed(gain['IMM'], 3)} nats, the {best} {_signed(gain[best], 3)}; IMM "
        f"less the {best} {_signed(lead, 3)}.",
        "04-your-first-real-data",
        gain["IMM"],
        lead,
    )


def _tests(result: dict, where: str = "") -> dict[str, torch.Tensor]:
    """Test perplexities of every arm, in the order of the seeds."""
    found: dict[str, list[float]] = {}
    for row in sorted(rows(result, where), key=lambda row: row["seed"]):
        found.setdefault(row["arm"], []).append(row["test"])
    return {arm: torch.tensor(values, dtype=torch.float64) for arm, values in found.items()}


def _snippets() -> Iterator[Line]:
    """Text with a target that was counted on other text."""
    if (result := stored("language-snippets")) is None:
        return
    test = _tests(result, "arms/{arm}")
    gain = {arm: _less(test[arm], test["baseline"]) for arm in ("reverse-KD", "IMM, bigram")}
    lead = _less(test["IMM, bigram"], test["reverse-KD"])
    yield Line(
        f"An LSTM with restricted samples of other text, {len(test['baseline'])} seeds, test "
        f"perplexity less that without a target: IMM {_signed(gain['IMM, bigram'], 1)}, reverse "
        f"distillation {_signed(gain['reverse-KD'], 1)}; IMM less reverse distillation "
        f"{_signed(lead, 1)}.",
        "16-real-side-information",
        gain["IMM, bigram"],
        lead,
    )


def _seen() -> Iterator[Line]:
    """The fused term that corrects only seen labels, untuned as its rivals are."""
    if (result := stored("language-seen")) is None:
        return
    loss = _tests(result)
    ours, plain = loss["seen labels, λ = 1"], loss["baseline"]
    other, dense = loss["reverse-KD, λ = 1"], loss["all labels, λ = 1"]
    lead = _less(ours, other)
    yield Line(
        f"The LSTM again, with λ = 1 for all, {len(ours)} seeds, test perplexity less plain "
        "training's: the moving average of chapter 14, corrected at the labels that occurred, "
        f"{_signed(_less(ours, plain), 1)}, and kept as a whole table "
        f"{_signed(_less(dense, plain), 1)}; reverse distillation "
        f"{_signed(_less(other, plain), 1)}; the first less reverse distillation "
        f"{_signed(lead, 1)}.",
        "21-cost-and-fidelity",
        _less(ours, plain),
        lead,
    )


def _fine_tuning() -> Iterator[Line]:
    """CoLA on a small encoder: the area under the curve, in points."""
    if (result := stored("masked-cola")) is None:
        return
    ours, other, lead = (
        paired(result, lambda row: 100 * row["scores/auc"], ["arm"], against)[(arm,)].change
        for arm, against in (
            ("MLM + IMM", "MLM"),
            ("MLM + noising", "MLM"),
            ("MLM + IMM", "MLM + noising"),
        )
    )
    yield Line(
        f"Fine-tuning a small transformer on CoLA, {ours.runs} seeds, area under "
        f"the ROC curve (higher is better) less that without a target: IMM {_signed(ours, 1)} "
        f"points, noising {_signed(other, 1)}; IMM less noising {_signed(lead, 1)}.",
        "15-fine-tuning",
        _reversed(ours),
        _reversed(lead),
    )


COMPARISONS = (_map_rows, _seen, _diagnoses, _snippets, _fine_tuning)


def _map() -> str:
    """How often IMM is ahead over all tasks of the map that are stored, or nothing."""
    if not (cells := _cells()):
        return ""
    lines = "\n".join(f"- {line}" for line in reading.counted(cells))
    told = (
        f"Over {len(cells)} tasks, all trained by one protocol (the *map* of "
        f"{_link('09-what-to-use')}):\n\n{lines}"
    )
    told += (
        "\n\nLosses on the map are in nats, half squared errors for `diabetes`, and minus the "
        "return on the grid. *By folds* is by five folds of the training cases, or by validation "
        "text. In the boxes below IMM's λ is chosen in the same way. The rival is the one that "
        "did best on the test cases, which favours it. Each kind of task has one line."
    )
    if wine := cells.get("wine, linear, n = 20"):
        untuned = reading.against(wine, "IMM, λ = 1")
        told += (
            f" {_link('09-what-to-use')} advises against folds on few cases: at λ = 1, untuned, "
            f"IMM changes the loss on the wines by {untuned.told()} nats."
        )
    return told


def _link(chapter: str) -> str:
    return f"[Chapter {int(chapter[:2])}]({chapter}.ipynb)"


def _theory() -> str:
    world = tabular.counterexample()
    gap = world.kl(world.noising_minimiser(1.0).log()).item()
    return (
        "With endless data and a perfect target, IMM leads to the true model at every weight. "
        f"Noising at λ = 1 ends {gap:.4f} nats away from it in the paper's world. "
        f"{_link('03-noising-counterexample')}."
    )


def _bigram() -> Iterator[str]:
    if result := stored("kneser-ney"):
        ours = {e["unit"].get("split"): e["numbers"].get("paper") for e in result["units"]}
        parts = ", ".join(f"{ours[split]:.3f}" for split in ("train", "valid", "test"))
        yield (
            "The Kneser–Ney bigram, one row of the paper's Table 5, has the printed perplexities: "
            f"{parts}. {_link('13-kneser-ney')}."
        )


def _table_4() -> Iterator[str]:
    columns = {}
    if not (search := stored("logistic-search")):
        return
    for plane in (JUDGED, FIRST):
        if not (result := stored(plane.experiment)):
            return
        columns[plane] = [r for r in logistic.against(result) if tuple(r["normal"]) == plane.normal]
    last = max(row["n"] for row in columns[FIRST])
    noising = {
        plane: next(r for r in rows if (r["n"], r["method"]) == (last, "noising"))
        for plane, rows in columns.items()
    }
    near = {plane: sum(map(logistic.inside, rows)) for plane, rows in columns.items()}
    tried = sum(len(entry["numbers"]["accuracy"]) for entry in search["units"])
    yield (
        f"Table 4's column of noising: {noising[FIRST]['paper']:.2f} per cent printed for {last} "
        f"points, {noising[JUDGED]['ours']:.2f} here on the plane {JUDGED.normal}, which was "
        f"chosen for its closeness among {tried} settings, and {noising[FIRST]['ours']:.2f} on "
        f"{FIRST.normal}. Of the table's {len(columns[FIRST])} means {near[JUDGED]} agree with "
        f"ours on the first plane and {near[FIRST]} on the second. In the paper noising gains more "
        f"from 20 points on than in any setting that we tried. {_link('17-lambda-and-table-4')}."
    )


def _all_text() -> Iterator[str]:
    if result := stored("language-full"):
        found = {}
        for row in rows(result):
            arm = row["arm"].replace("reverse-KD", "reverse distillation")
            found[arm] = row["test"], row["mixture/test"]
        plain = found.pop("baseline")
        alone = ", ".join(f"{values[0]:.1f} ({arm})" for arm, values in found.items())
        best = min(found, key=lambda arm: found[arm][1])
        yield (
            f"An LSTM on all of the Penn Treebank, one run each, test perplexity: {plain[0]:.1f} "
            f"(plain), {alone}. Mixed with the bigram, plain training has {plain[1]:.1f}, and the "
            f"best of these, {best}, {found[best][1]:.1f}. {_link('21-cost-and-fidelity')}."
        )


def _shifted() -> Iterator[str]:
    if result := stored("side-shift"):
        behind = [row for row in rows(result, "shifts/{shift}") if row["lead"] <= 0]
        harmed = sum(row["change"] > 0 for row in behind)
        yield (
            "A target that is not ahead of the model's own induced model on held-out pairs: IMM at "
            f"λ = 1 raised the test loss in {harmed} of {len(behind)} such splits "
            f"({100 * harmed / len(behind):.0f} %). {_link('16-real-side-information')}."
        )


def _not_run() -> Iterator[str]:
    every = numbers()
    missing = [number for number in every if number.ours is None]
    for place in dict.fromkeys(number.place for number in missing):
        found = [number for number in missing if number.place == place]
        partly = place == "Table 5" and len(found) < sum(n.place == place for n in every)
        what = f"The other {len(found)} numbers of {place}, those of LSTMs"
        yield f"{what if partly else f'{place}, {len(found)} numbers'}: `{found[0].told}`."
    for name in MAP:
        if not stored(name):
            yield f"The map's `{name}`: `python -m imm_lib run {name}`."
    if missing:
        plain = [number for number in every if not number.bar]
        tally = Counter(number.verdict for number in plain)
        table = [n.what for n in plain if (n.place, n.verdict) == ("Table 4", "inside")]
        gaps = sum(what.endswith("less noising") for what in table)
        yield (
            f"The paper prints {len(plain)} numbers, not counting error bars. {tally['inside']} of "
            f"them lie inside our 95 % interval, {tally['outside']} do not, and "
            f"{tally['not run']} were not run; [reproduction](reproduction.md) lists each, with "
            f"its command. Those inside include {len(table) - gaps} means of Table 4 and {gaps} of "
            "its differences of IMM and noising, on the plane that was chosen for its closeness. "
            "Tables 1, 2 and 5 need a GPU."
        )


def _box(title: str, kind: str, lines: list[str]) -> str:
    items = "\n".join(f"- {line}" for line in lines)
    return f":::{{admonition}} {title}\n:class: {kind}\n\n{items}\n:::\n"


def page() -> str:
    """The box as Markdown, for inclusion; the same results give the same bytes."""
    lines = [line for comparison in COMPARISONS for line in comparison()]
    told = {
        holds: [f"{line.text} {_link(line.chapter)}." for line in lines if line.holds is holds]
        for holds in (True, False)
    }
    boxes = [
        _box("Holds", "tip", [_theory(), *_bigram(), *told[True]]),
        _box("Does not hold", "warning", [*told[False], *_all_text(), *_shifted(), *_table_4()]),
        _box("Not run", "note", list(_not_run())),
    ]
    return "\n\n".join(filter(None, [_map(), "\n".join(boxes)]))
