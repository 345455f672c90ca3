"""What lets a unit go on after a kill: its identity, the digest of its code, and its checkpoint."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imm_lib import results
from imm_lib.experiments.catalogue import CATALOGUE

if TYPE_CHECKING:
    import torch

_FOLDER: ContextVar[Path | None] = ContextVar("folder of the unit at work", default=None)
ROOT = Path(__file__).resolve().parents[1]
APART = {"plotting.py", "__main__.py", "__init__.py", "public.py"}
# and of the shared ones those that only run what others compute
APART |= {
    f"experiments/{name}.py"
    for name in (
        *("arguments", "catalogue", "keep", "kit", "merge", "options", "progress", "queue"),
        *("reading", "resume", "runner", "table", "workers"),
    )
}
"""Files on which no number depends. The package's ``__init__`` only names what other files hold."""
_IMPORT = r"from imm_lib\.experiments(?:\.| import )(\w+)"


def identity(value: object) -> str:
    """A digest of a JSON object, whatever the order of its names."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def code(module: str | None, root: Path = ROOT) -> str:
    """A digest of what an experiment computes with: the core, what experiments share, the
    experiment's own module of ``imm_lib.experiments``, and those that this one imports. It is what
    --resume compares, so that no result joins units of two programs.
    """
    digest, own = hashlib.sha256(), _imported(module, root)
    for file in sorted(root.rglob("*.py")):
        name = file.relative_to(root).as_posix()
        if name not in APART and _concerns(name, own):
            digest.update(f"{name}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def _concerns(name: str, modules: set[str]) -> bool:
    """Whether a file, by its path below imm_lib, is core, shared, or of the modules."""
    first, _, rest = name.partition("/")
    if first != "experiments":
        return True
    own = rest.partition("/")[0].removesuffix(".py")
    return own in modules or ("/" not in rest and own not in CATALOGUE)


def _imported(module: str | None, root: Path) -> set[str]:
    """A module of the catalogue with those that it imports, and that these import."""
    found, left = set[str](), {name for name in CATALOGUE if name == module}
    while left:
        name = left.pop()
        found.add(name)
        for file in (root / "experiments").rglob("*.py"):
            if name in (file.stem, file.parent.name):
                words = re.findall(_IMPORT, file.read_text("utf-8"))
                left |= set(words) & set(CATALOGUE) - found
    return found


@contextlib.contextmanager
def beside(folder: Path | None) -> Iterator[None]:
    """While a unit is at work its checkpoints lie in ``folder``, which is deleted when it is
    done.
    """
    token = _FOLDER.set(folder)
    try:
        yield
    finally:
        _FOLDER.reset(token)
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


def checkpoint(name: str) -> Path | None:
    """The file in which the unit at work keeps a state, ``name``.pt beside the run's output; None
    outside a run, where nothing is kept.
    """
    folder = _FOLDER.get()
    if folder is None:
        return None
    return folder / f"{hashlib.sha256(name.encode()).hexdigest()[:12]}.pt"


def save(file: Path, state: dict) -> None:
    """Write a run's state, whole or not at all."""
    import torch

    content = io.BytesIO()
    torch.save(state, content)
    results.write_bytes(file, content.getvalue())


def load(file: Path) -> dict:
    """What :func:`save` wrote, on the CPU; raises ValueError if torch cannot read it."""
    import torch

    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # garbage makes torch raise almost anything
        raise ValueError(
            f"checkpoint must be a file that train has written, got {file.name}: {error}"
        ) from None


@dataclass
class Checkpoint:
    """What a training needs to go on, bit by bit, where it was killed.

    Attributes:
        file: where it is written; None for nowhere.
        identity: by name, what a training that goes on has in common with the one that wrote.
        parts: what has states of its own: the model, its optimiser and so on.
        device: where they are; torch's generators there and on the CPU are kept with them.
        sources: the training's own generators.
    """

    file: Path | None
    identity: dict
    parts: Sequence[Any]
    device: torch.device
    sources: Sequence[torch.Generator] = ()

    def write(self, progress: Any) -> None:
        """Keep the states, and what the training has come to so far."""
        import torch

        if self.file is None:
            return
        cuda = [torch.cuda.get_rng_state(self.device)] if self.device.type == "cuda" else []
        state = {
            "identity": self.identity,
            "parts": [part.state_dict() for part in self.parts],
            "random": [source.get_state() for source in self.sources],
            "torch": [torch.get_rng_state(), *cuda],
            "progress": progress,
        }
        save(self.file, state)

    def read(self) -> Any:
        """Put the states back; what had been come to, None where there is no file. Raises
        ValueError, before anything changes, for a file that another training has written.
        """
        import torch

        if self.file is None or not self.file.is_file():
            return None
        state, name = load(self.file), self.file.name
        if not isinstance(state, dict) or "identity" not in state:
            raise ValueError(f"checkpoint must be one of a training, got {name} without identity")
        for field, value in self.identity.items():
            if (other := state["identity"].get(field)) != value:
                raise ValueError(
                    f"checkpoint must be of {field} = {value!r}, got {name} of another {field}, "
                    f"{other!r}"
                )
        for part, value in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(value)
        for source, value in zip(self.sources, state["random"], strict=True):
            source.set_state(value)
        torch.set_rng_state(state["torch"][0])
        for value in state["torch"][1:]:
            torch.cuda.set_rng_state(value, self.device)
        return state["progress"]
