"""The book's experiments: what they are called, and the one runner that they share.

``catalogue`` names them, ``runner`` runs them. Both are imported when a name of theirs is asked
for, so that naming the experiments imports neither torch nor any of them.
"""

from typing import TYPE_CHECKING, Any

from imm_lib.experiments import catalogue
from imm_lib.experiments.catalogue import descriptions, find, names, registry
from imm_lib.experiments.options import adjusted, check_scale

if TYPE_CHECKING:
    from imm_lib.experiments.runner import Experiment, UnitError, file_name, forget, run

__all__ = [
    "Experiment",
    "UnitError",
    "adjusted",
    "catalogue",
    "check_scale",
    "descriptions",
    "file_name",
    "find",
    "forget",
    "names",
    "registry",
    "run",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from imm_lib.experiments import runner

    return getattr(runner, name)
