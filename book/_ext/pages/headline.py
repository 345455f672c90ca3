"""The front page's table: what IMM changes in five experiments, beside plain training and direct
matching.
"""

from collections.abc import Iterator
from typing import NamedTuple

from imm_lib import results
from imm_lib.experiments import sensors
from imm_lib.experiments.language import readings
from imm_lib.experiments.side import real
from pages.reproduction import NORMAL


class Row(NamedTuple):
    """One experiment at one size."""

    what: str
    plain: float
    direct: float  # the target matched by the model itself, by noising or reverse distillation
    imm: float
    change: tuple[float, float]  # IMM less plain: mean and half of its 95 % interval
    chapter: str
    digits: int = 1


def _logistic() -> Row:
    units = results.load("logistic-sizes")["units"]
    scores = next(
        e["numbers"]["accuracy"]
        for e in units
        if (e["unit"]["normal"], e["unit"]["n"]) == ([1, 1, 1], 10)
    )
    means = [scores[method]["mean"] for method in ("baseline", "noising", "IMM exact")]
    gain = scores["IMM exact"]["above_baseline"]
    what = "Logistic regression on 10 points: accuracy, per cent ↑"
    return Row(what, *means, (gain["mean"], NORMAL * gain["se"]), "06-logistic-regression")


def _sensors() -> Row:
    entries = sensors.cells(results.load("sensors"), "worst radius", 20)
    plain, _ = results.mean_interval([e["test"]["baseline"]["loss"] for e in entries])
    change, direct = sensors.gain(entries, "IMM"), sensors.gain(entries, "reverse-KD")[0]
    what = "Diagnoses from 20 cases: test loss, nats ↓"
    return Row(what, plain, plain + direct, plain + change[0], change, "21-your-own-project", 3)


def _grid() -> Row:
    found = {}
    for entry in results.load("grid-beyond")["units"]:
        unit, exact = entry["unit"], entry["numbers"]["exact"]["100"]
        if "critic" not in unit and unit["target"] in ("none", "argmax"):
            found.setdefault(unit.get("matching", "none"), []).append((exact["mean"], exact["se"]))
    (plain, direct, imm) = (max(found[matching]) for matching in ("none", "reverse-KD", "IMM"))
    error = (plain[1] ** 2 + imm[1] ** 2) ** 0.5
    what = "A walker after 100 trials: return, best of five weights ↑"
    return Row(
        what, plain[0], direct[0], imm[0], (imm[0] - plain[0], NORMAL * error), "12-going-further"
    )


def _language() -> Row:
    found = readings.summary(results.load("language-methods"))
    imm = found["moving average, λ = 1"]
    tests = found["baseline"]["test"], found["reverse-KD, λ = 1"]["test"], imm["test"]
    what = "LSTM on 3 % of the Penn Treebank, λ = 1: perplexity ↓"
    return Row(what, *tests, (imm["difference"], imm["half_width"]), "13-lstm-language-models")


def _digits() -> Row:
    runs = real.cases(results.load("side-digits"))["digits", "convolutions", 100]
    plain, change = real.mean(runs, "baseline"), real.gain(runs, "IMM", leave_out="bandwidth 0.03")
    direct = plain + real.gain(runs, "reverse-KD")[0]
    what = "Digits from 100 pictures, a quarter of the pixels: test loss, nats ↓"
    return Row(what, plain, direct, plain + change[0], change, "20-real-side-information", 3)


def _lines() -> Iterator[str]:
    yield "| what | plain | matched directly | IMM | IMM less plain, 95 % | chapter |"
    yield "|---|---|---|---|---|---|"
    for row in (_logistic(), _sensors(), _grid(), _language(), _digits()):
        shown = (f"{value:.{row.digits}f}" for value in (row.plain, row.direct, row.imm))
        change = f"{row.change[0]:+.{row.digits}f} ± {row.change[1]:.{row.digits}f}"
        yield f"| {row.what} | {' | '.join(shown)} | {change} | [{int(row.chapter[:2])}]({row.chapter}.ipynb) |"


def page() -> str:
    """The table as Markdown, for inclusion; the same results give the same bytes."""
    return "\n".join(_lines()) + "\n"
