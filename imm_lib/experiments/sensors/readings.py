"""The numbers of a stored run, by sensor, size and method."""

import imm_lib as imm

METHODS = {
    "baseline": imm.plotting.METHOD_STYLE["baseline"],
    "interpolation": imm.plotting.METHOD_STYLE["interpolation"],
    "reverse-KD": imm.plotting.METHOD_STYLE["reverse-KD"],
    "offset": imm.plotting.Style("#661100", "p", ":"),
    "IMM": imm.plotting.METHOD_STYLE["IMM exact"],
}
"""The methods of the chapter's pictures, by their names in results, and how they look."""


def cells(result: dict, sensor: str, n: int) -> list[dict]:
    """The numbers of all seeds of one sensor and size."""
    entries = [
        e["numbers"]
        for e in result["units"]
        if (e["unit"]["sensor"], e["unit"]["n"]) == (sensor, n)
    ]
    if not entries:
        raise ValueError(f"the result has no sensor {sensor!r} with n = {n!r}")
    return entries


def gain(
    entries: list[dict],
    method: str,
    score: str = "loss",
    choice: str | None = None,
    against: str = "baseline",
) -> tuple[float, float]:
    """Paired change of a test score, mean and half width: below 0 is better for "loss", above for
    "accuracy".
    """
    tests = [(e if choice is None else e[choice])["test"] for e in entries]
    return imm.results.mean_interval([test[method][score] - test[against][score] for test in tests])
