"""The see-saw as still pictures: the figure where no script runs, the social card, the logo.

``make pictures`` writes them into book/_static. Positions come from the library, so that a test can
compare them with what the live see-saw shows.
"""

import json
from pathlib import Path

import torch
from torch import Tensor

import imm_lib as imm
from imm_lib import results

WEIGHTS = torch.tensor([0.25, 0.75], dtype=torch.float64)
"""Chapter 1's patients with fever: without and with a cough."""
TRUTH = torch.tensor([0.2, 0.9], dtype=torch.float64)
SAID = torch.tensor([0.45, 0.95], dtype=torch.float64)
"""What a doctor says who saw few of them."""
NURSE = (WEIGHTS @ TRUTH).item()
LAM = 10.0
MODES = {
    "alone": "labels alone: it tilts",
    "direct": "match directly: crushed",
    "average": "match the average: balanced",
}


def train(
    mode: str, said: Tensor, weights: Tensor, nurse: float, lam: float, steps: int = 500
) -> Tensor:
    """Probabilities (E,) of a doctor who starts at what the labels say, with one short context.

    Args:
        mode: "alone", "direct" (the noising risk) or "average" (the IMM risk).
        said: (E,) shares of the label among those seen.
        weights: (E,) π(e|s).
        nurse: the target's probability of the label.
        lam: weight λ.
        steps: at most so many of the optimiser.

    Raises:
        ValueError: for another mode.
    """
    risks = {"direct": imm.noising_risk, "average": imm.imm_risk}
    if mode not in MODES:
        raise ValueError(f"mode must be one of {sorted(MODES)}, got {mode!r}")
    if mode == "alone":
        return said.clone()
    target = torch.tensor([nurse, 1 - nurse], dtype=torch.float64)
    labels = torch.stack([said, 1 - said], -1)
    logits = labels.log().requires_grad_()
    optimiser = torch.optim.LBFGS(
        [logits],
        max_iter=steps,
        tolerance_grad=1e-12,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def closure():
        optimiser.zero_grad()
        log_q = logits.log_softmax(-1)
        loss = -weights @ (labels * log_q).sum(-1)
        loss = loss + lam * risks[mode](target, log_q, weights.log())
        loss.backward()
        return loss

    optimiser.step(closure)
    return logits.detach().softmax(-1)[:, 0]


def beam(ax, model: Tensor, weights: Tensor, nurse: float, line=3.0, scale=1.0) -> None:
    """Draw one see-saw: the pivot at the nurse, a disc for each kind, tilted by what is left over.

    ``line`` is the beam's width in points; ``scale`` enlarges discs and pivot, for a small sign.
    """
    from matplotlib.patches import Circle

    tilt = 0.8 * (weights @ model - nurse).item()
    red, blue = imm.plotting.COLORS["vermillion"], imm.plotting.COLORS["blue"]
    foot = 0.06 * scale
    ax.fill([nurse, nurse - foot, nurse + foot], [0, -2.1 * foot, -2.1 * foot], color=red)
    ends = [-tilt * nurse, tilt * (1 - nurse)]
    ax.plot([0, 1], ends, color="#333333", linewidth=line, marker="", solid_capstyle="round")
    for q, w in zip(model.tolist(), weights.tolist(), strict=True):
        radius = 0.09 * scale * w**0.5
        middle = q, tilt * (q - nurse) + radius + 0.008 * scale
        ax.add_patch(Circle(middle, radius, facecolor=blue, edgecolor="white", linewidth=1))
    ax.set(xlim=(-0.04, 1.06), ylim=(-0.14 * scale, 0.2 * scale), aspect="equal")
    ax.set_axis_off()


def states() -> dict[str, list[float]]:
    """Where each mode leaves the discs of the still picture."""
    return {mode: train(mode, SAID, WEIGHTS, NURSE, LAM).tolist() for mode in MODES}


def _seesaw(result: dict[str, list[float]], description: str, file: Path) -> None:
    """The three modes, one above the other."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(3, 1, figsize=(6, 6))
    for ax, (mode, model) in zip(axes, result.items(), strict=True):
        beam(ax, torch.tensor(model, dtype=torch.float64), WEIGHTS, NURSE)
        ax.set_title(MODES[mode], fontsize=13)
    figure.savefig(file, metadata={"Date": None, "Description": description})
    pyplot.close(figure)


def _card(result: dict[str, list[float]], file: Path) -> None:
    """1200 x 630 pixels for a link that someone shares."""
    from matplotlib import pyplot

    figure = pyplot.figure(figsize=(12, 6.3), layout="none")
    figure.text(0.06, 0.83, "Induced Model Matching", fontsize=48, weight="bold")
    figure.text(0.06, 0.73, "Match the average, and keep the spread.", fontsize=28)
    for left, mode in ((0.03, "direct"), (0.52, "average")):
        ax = figure.add_axes((left, 0.15, 0.45, 0.5))
        beam(ax, torch.tensor(result[mode], dtype=torch.float64), WEIGHTS, NURSE, line=7)
        figure.text(left + 0.225, 0.08, MODES[mode], fontsize=24, ha="center")
    figure.savefig(file, dpi=100)
    pyplot.close(figure)


def _mark(model: list[float], words: str, shape: tuple[float, float], file: Path) -> None:
    """The balanced see-saw as the book's sign, with words beside it or none."""
    from matplotlib import pyplot

    figure = pyplot.figure(figsize=shape, layout="none")
    ax = figure.add_axes((0, 0, shape[1] / shape[0], 1))
    beam(ax, torch.tensor(model, dtype=torch.float64), WEIGHTS, NURSE, line=8, scale=1.9)
    if words:
        figure.text(0.42, 0.32, words, fontsize=62, weight="bold", color="#222222")
    figure.savefig(file, metadata={"Date": None, "Title": "Induced Model Matching"})
    pyplot.close(figure)


def write() -> None:
    """Write every picture into book/_static; the same library gives the same bytes."""
    folder = Path(results.folder()).parent / "_static"
    imm.plotting.use_style()
    result = states()
    description = json.dumps({"lam": LAM, "said": SAID.tolist(), **result})
    _seesaw(result, description, folder / "see-saw.svg")
    _card(result, folder / "card.png")
    _mark(result["average"], "", (2, 2), folder / "favicon.svg")
    _mark(result["average"], "IMM", (4.6, 1.8), folder / "logo.svg")


if __name__ == "__main__":
    write()
