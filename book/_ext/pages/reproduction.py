"""Every number that the paper prints, beside the stored one, with a verdict by rule: the book's
reproduction page.

A number of the paper is *inside* if it differs from ours by no more than the 95 % interval of the
difference, from both sides' errors where both are known, and the rounding of its last digit;
*outside* if by more; *not run* where no result is stored.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import NamedTuple

import torch

from imm_lib import experiments, tabular
from imm_lib.experiments import paper
from imm_lib.experiments.logistic import paper as logistic
from imm_lib.experiments.reading import paired
from pages.execution import devices, duration, stored

NORMAL = 1.959964
"""Half-width of a 95 % interval in standard errors."""

_TEST = "python -m pytest tests/test_tabular.py"


class Number(NamedTuple):
    """A printed number and ours."""

    place: str  # where the paper prints it: a table or a section
    what: str
    printed: str  # as in the paper, for its last digit says how it was rounded
    experiment: str  # whose stored result has ours; "" where there is none
    ours: float | None = None  # None: not run
    error: float = 0.0  # standard error of the difference; 0 for what is computed exactly
    runs: int = 1
    command: str = ""  # by default the experiment's

    @property
    def told(self) -> str:
        """The command that makes it."""
        if self.command or not self.experiment:
            return self.command
        if result := stored(self.experiment):
            return result["command"]
        gpu = " --device cuda" if experiments.find(self.experiment).gpu else ""
        return f"python -m imm_lib run {self.experiment}{gpu}"

    @property
    def bar(self) -> bool:
        """Whether it is one end of a percentile bar, which is folded and counted apart."""
        return self.what.endswith("bar")

    @property
    def difference(self) -> float:
        """Ours less the paper's."""
        return self.ours - float(self.printed)

    @property
    def half_width(self) -> float:
        """Of the difference's 95 % interval, without the rounding."""
        return NORMAL * self.error

    @property
    def rounding(self) -> float:
        """Half a unit of the last printed digit."""
        return 0.5 * 10.0 ** -len(self.printed.partition(".")[2])

    @property
    def verdict(self) -> str:
        """inside, outside or not run."""
        if self.ours is None:
            return "not run"
        # a value that lies on the border as far as binary fractions can tell is inside
        return (
            "inside"
            if abs(self.difference) <= self.half_width + self.rounding + 1e-9
            else "outside"
        )


def _counterexample() -> Iterator[Number]:
    world = tabular.counterexample()
    flat = torch.full((2, 2, 2), 0.5, dtype=torch.float64).log()
    yield Number("Proposition 6.1", "g(Q†)", "-1.1", "", world.g(flat).item(), command=_TEST)


def _extra_data() -> Iterator[Number]:
    number = Number(
        "Section 7.1", "extra data that IMM is worth, per cent", "30", "logistic-extra-data"
    )
    if result := stored(number.experiment):
        found = result["units"][0]["numbers"]["all sizes"]
        error = (found["interval"][1] - found["interval"][0]) / 2 / NORMAL
        number = number._replace(ours=found["percent"], error=error, runs=result["config"]["runs"])
    yield number


class Plane(NamedTuple):
    """On which Table 4 is computed: the stored result and the plane's normal."""

    experiment: str
    normal: tuple[int, int, int]


JUDGED = Plane("logistic-plane", (1, 3, 3))
"""The nearest of the search by the column of noising, run on data that the search did not see."""

FIRST = Plane("logistic-fixed", (1, 1, 1))
"""Chosen before any comparison; told beside it."""


def _table_4(plane: Plane = JUDGED, exchanged: bool = False) -> Iterator[Number]:
    """Means, both bars and the gap; ``exchanged`` reads the printed upper bars as lower ones."""
    result, rows, runs = stored(plane.experiment), {}, 1
    if result:
        rows = {
            (r["n"], r["method"]): r
            for r in logistic.against(result)
            if tuple(r["normal"]) == plane.normal
        }
        runs = result["config"]["runs"]
    for n, methods in logistic.TABLE_4.items():
        for method, cell in methods.items():
            ours = rows[n, method]["cell"] if rows else None
            printed = {"": cell.mean, ", upper bar": cell.plus, ", lower bar": cell.minus}
            if exchanged:
                printed |= {", upper bar": cell.minus, ", lower bar": cell.plus}
            for i, (what, value) in enumerate(printed.items()):
                number = Number(
                    "Table 4",
                    f"n = {n}, {method}{what}",
                    f"{value:.2f}",
                    plane.experiment,
                )
                if ours:
                    row = rows[n, method]
                    bars = (
                        math.hypot(
                            logistic.standard_error(cell), logistic.standard_error(ours, runs)
                        )
                        * logistic.BAR
                    )
                    error = bars if i else abs(row["difference"] / row["errors"])
                    number = number._replace(ours=ours[i], error=error, runs=runs)
                yield number
        number = Number("Table 4", f"n = {n}, IMM less noising", logistic.GAP[n], plane.experiment)
        if rows:
            pair = [rows[n, method] for method in ("IMM exact", "noising")]
            error = math.hypot(*(r["difference"] / r["errors"] for r in pair))
            number = number._replace(ours=pair[0]["ours"] - pair[1]["ours"], error=error, runs=runs)
        yield number


def _told(plane: Plane) -> str:
    """How many means and gaps are inside on a plane, and how many of the column of noising."""
    found = [number for number in _table_4(plane) if not number.bar]
    parts = {
        "means": lambda what: not what.endswith("less noising"),
        "gaps": lambda what: what.endswith("less noising"),
        "means of noising": lambda what: what.endswith(", noising"),
    }
    counted = {}
    for name, belongs in parts.items():
        verdicts = [number.verdict == "inside" for number in found if belongs(number.what)]
        counted[name] = f"{sum(verdicts)} of {len(verdicts)} {name}"
    return "{means} and {gaps} are inside, {}".format(counted.pop("means of noising"), **counted)


def _planes() -> str:
    """Which plane Table 4 is judged on, out of how many, and what the other ones give."""
    search, wide, again = (stored(f"logistic-{n}") for n in ("search", "columns", "confirmed"))
    if not all((search, wide, again, stored(JUDGED.experiment), stored(FIRST.experiment))):
        return _NO_PLANE
    tried = sum(len(e["numbers"]["accuracy"]) for e in search["units"])
    ranked = logistic.fits(wide)
    place = next(i for i, fit in enumerate(ranked, 1) if tuple(fit.normal) == JUDGED.normal)
    other = min(logistic.fits(again), key=lambda fit: fit.chi2)
    return f"""{_NO_PLANE}

It is judged on the plane with the normal {JUDGED.normal} through the cube's centre. The plane was
searched for: it is the nearest of {tried} settings by the column of noising, and number {place} of
{len(ranked)} by all three columns. The runs below are none of those that chose it:
{_told(JUDGED)}.

A plane that was searched for fits better than one chosen beforehand. On {FIRST.normal}, the
book's first, {_told(FIRST)}.
By all columns of shorter runs the nearest is {tuple(other.normal)} with {other.labels} labels
redrawn at every step. No setting that was tried has the printed rise of noising from 20 to 50
points in full.
[Chapter 17](17-lambda-and-table-4.ipynb) has the search, and all columns by plane."""


_NO_PLANE = """Accuracies in per cent at λ = 1.5. The paper does not print its plane. The errors of
its means are read off its bars."""


def _on_first() -> Iterator[str]:
    """The means and gaps on the first plane, folded; they are not counted."""
    found = [number for number in _table_4(FIRST) if not number.bar]
    if any(number.ours is None for number in found):
        return
    title = f":::{{dropdown}} The same on the plane {FIRST.normal}, not counted above"
    yield from (title, "", f"- `{found[0].told}` ({found[0].runs:,} runs)", "")
    yield from ("| number | paper | ours | ours less paper, 95 % | by the rule |", "|---" * 5 + "|")
    for number in found:
        difference = f"{number.difference:+.2f} ± {number.half_width:.2f}"
        cells = number.what, number.printed, f"{number.ours:.2f}", difference, number.verdict
        yield "| " + " | ".join(cells) + " |"
    yield from (":::", "")


def _some_sizes() -> str:
    """What the extra data would be over five of the sizes."""
    note = """Ours is the mean over the twelve sizes from 2 to 50 of
[chapter 11](11-logistic-regression.ipynb). The paper says neither over which sizes it averages nor
how large its error is."""
    if result := stored("logistic-extra-data"):
        tens = result["units"][0]["numbers"]["tens"]
        low, high = tens["interval"]
        alone = f"{tens['percent']:.0f} ({low:.0f} to {high:.0f})"
        note += (
            f"\nOver 10, 20, 30, 40 and 50 points alone it is {alone}, around the printed number."
        )
    return note


def _bars() -> str:
    """How many of Table 4's bars are inside as printed, and with the two exchanged."""
    found = [
        sum(n.verdict == "inside" for n in _table_4(exchanged=exchanged) if n.bar)
        for exchanged in (False, True)
    ]
    return f"""Most of the paper's upper bars are longer than its lower ones, though accuracies end
at 100. As printed {found[0]} of the 42 bars are inside; if upper and lower are exchanged,
{found[1]} are."""


def _language(
    place: str, what: str, printed: str, method: str, read: Callable[[dict], float]
) -> Number:
    """Ours is the mean over the seeds; a single seed has no error to state, and nothing is claimed
    of it.
    """
    number, result = (
        Number(place, f"{what}, {method}", printed, "language-paper"),
        stored("language-paper"),
    )
    units = result["units"] if result else []
    arms = [e["numbers"] for e in units if e["unit"]["arm"] == paper.ARMS[method]]
    found = torch.tensor(
        [read(numbers) for numbers in arms if "diverged" not in numbers], dtype=torch.float64
    )
    if len(found) < 2:
        return number
    error = found.std().item() / len(found) ** 0.5
    return number._replace(ours=found.mean().item(), error=error, runs=len(found))


def _table_1() -> Iterator[Number]:
    for method, row in paper.TABLE_1.items():
        for split, printed in row.items():
            yield _language(
                "Table 1",
                f"perplexity, {split}",
                f"{printed:.1f}",
                method,
                lambda run, s=split: run[s],
            )


def _table_5() -> Iterator[Number]:
    result = stored("kneser-ney")
    ours = {e["unit"].get("split"): e["numbers"] for e in result["units"]} if result else {}
    for split, row in paper.TABLE_5.items():
        what, known = f"bigram perplexity, {split}", ours.get(split, {}).get("paper")
        yield Number(
            "Table 5", f"{what}, Kneser-Ney", f"{row['Kneser-Ney']:.2f}", "kneser-ney", known
        )
        for method in ("none", "IMM"):
            printed = f"{row[method]:.2f}"
            yield _language(
                "Table 5", what, printed, method, lambda run, s=split: run["induced"][s]["paper"]
            )


def _table_2() -> Iterator[Number]:
    result = stored("masked-paper")
    for task, arms in paper.TABLE_2.items():
        ours = paired(result, "scores/score", ["task", "arm"]) if result else {}
        for arm, (mean, _) in arms.items():
            number = Number("Table 2", f"{task}, {arm}", mean, "masked-paper")
            if found := ours.get((task, ARM[arm])):
                score, half, runs = found.value
                error = 100 * half / NORMAL
                number = number._replace(ours=100 * score, error=error, runs=runs)
            yield number


ARM = {"base": "base", "+MLM": "MLM", "+MLM+IMM": "MLM + IMM"}
"""The arm of ``masked-paper`` for a column of Table 2."""


def numbers() -> list[Number]:
    """All of them, in the paper's order."""
    parts = _counterexample, _extra_data, _table_1, _table_2, _table_4, _table_5
    return [number for part in parts for number in part()]


def counts(found: list[Number]) -> dict[str, Counter]:
    """How many numbers of each place have which verdict; percentile bars are a place apart."""
    tally: dict[str, Counter] = {}
    for number in found:
        place = f"{number.place}, percentile bars" if number.bar else number.place
        tally.setdefault(place, Counter())[number.verdict] += 1
    return tally


def _rows(found: list[Number]) -> list[str]:
    rows = ["| number | verdict | paper | ours | ours less paper, 95 % |", "|---" * 5 + "|"]
    for number in found:
        cells = [number.what, number.verdict, number.printed, "", ""]
        if number.ours is not None:
            difference = f"{number.difference:+.2f} ± {number.half_width:.2f}"
            cells[3:] = f"{number.ours:.2f}", difference
        rows.append("| " + " | ".join(cells) + " |")
    return rows


def _source(found: list[Number]) -> Iterator[str]:
    """One line for each command of a section: what it made, on which device, in which time."""
    commands = {number.told: number for number in found if number.told}
    for command, number in commands.items():
        made = [n.runs for n in found if n.told == command and n.ours is not None]
        result = stored(number.experiment) if number.experiment and made else None
        told = [f"{made[0]:,} run{'s' * (made[0] > 1)}"] if made and number.experiment else []
        if result:
            told += [devices(result), duration(result["wall_s"])]
        state = "; ".join(told) if made else "not run"
        yield f"- `{command}`" + (f" ({state})" if state else "")


def _section(place: str, found: list[Number]) -> Iterator[str]:
    yield from (f"## {place}", "")
    made = {"Section 7.1": _some_sizes, "Table 4": _planes}
    if note := made[place]() if place in made else _NOTES.get(place):
        yield from (note, "")
    yield from (*_source(found), "", *_rows([n for n in found if not n.bar]), "")
    if bars := [number for number in found if number.bar]:
        title = f":::{{dropdown}} The {len(bars)} ends of the percentile bars"
        yield from (title, "", _bars().strip(), "", *_rows(bars), ":::", "")
    if place == "Table 4":
        yield from _on_first()


VERDICTS = "inside", "outside", "not run"


def _summary(found: list[Number]) -> list[str]:
    rows = ["| | inside | outside | not run |", "|---|---|---|---|"]
    for place, count in counts(found).items():
        rows.append(f"| {place} | " + " | ".join(str(count[v]) for v in VERDICTS) + " |")
    total = Counter(number.verdict for number in found if not number.bar)
    bold = " | ".join(f"**{total[verdict]}**" for verdict in VERDICTS)
    return [*rows, f"| **all but the bars** | {bold} |"]


def page() -> str:
    """The page as MyST Markdown; the same results give the same bytes."""
    found = numbers()
    plain = [number for number in found if not number.bar]
    ran = [number for number in plain if number.ours is not None]
    inside = sum(number.verdict == "inside" for number in ran)
    head = _HEAD.format(
        printed=len(plain), bars=len(found) - len(plain), ran=len(ran), inside=inside
    )
    parts = [head, *_summary(found), "", _RULE]
    for place, group in groupby(found, lambda number: number.place):
        parts += _section(place, list(group))
    return "\n".join(parts).rstrip() + "\n"


_HEAD = """# Reproduction

Every number that the paper ({{cite:t}}`muneeb2024induced`) prints for an experiment of this book,
beside ours. Of {printed} numbers {ran} have been run, and {inside} of these agree with the paper.
The {bars} ends of Table 4's percentile bars are counted apart. This page is generated from the
stored results by `make pages`; a test makes it anew and compares.
"""

_RULE = """A number is *inside* if it differs from ours by no more than the 95 % interval of the
difference and half a unit of the paper's last digit, *outside* if by more. The whole book uses
this rule. The interval has the errors of both sides where the paper says enough to know its own,
and ours only where not; it is ± 0 for what is computed exactly. *Not run* means that no result is
stored; the command is the one that would make it. A time is that of the whole command, which may
make more than one number. Of numbers that are truly the same, one in twenty is outside by chance.

What the paper shows in figures, without numbers, is compared in the chapters, statement by
statement.
"""

_NOTES = {
    "Table 1": """The paper's is the best of several restarts, ours is to be the mean of two seeds.
[Chapter 14](14-lstm-language-models.ipynb) has the same methods on a part of the text.""",
    "Table 2": """BERT base needs weights from a model hub and a GPU; it has not been run. [Chapter
15](15-fine-tuning.ipynb) has the same arms on a smaller encoder and parts of CoLA and MRPC.""",
    "Table 5": """The restricted model is in the paper's convention for perplexities ([chapter
13](13-kneser-ney.ipynb)).""",
}
"""What a reader must know before comparing."""
