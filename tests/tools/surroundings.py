"""What a kernel finds around it: folders of its own, so that neither an unwritable home nor a
user's own settings print into a chapter, UTF-8, and the CPU unless another device is asked for.
"""

from collections.abc import MutableMapping
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "_build" / "kernel"


def settle(environment: MutableMapping[str, str]) -> None:
    """Set what kernels that are started from here inherit."""
    for variable, name in (("MPLCONFIGDIR", "matplotlib"), ("IPYTHONDIR", "ipython")):
        folder = FOLDER / name
        folder.mkdir(parents=True, exist_ok=True)
        environment[variable] = str(folder)
    environment["PYTHONUTF8"] = "1"
    environment.setdefault("IMM_DEVICE", "cpu")
