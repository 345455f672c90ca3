"""Folders that the environment names: ``IMM_DATA`` has copies of data, ``IMM_CACHE`` takes
downloads, ``IMM_RESULTS`` holds results.
"""

import os
from contextlib import suppress
from pathlib import Path


def named(variable: str) -> Path | None:
    """The folder that an environment variable names, its ``~`` expanded; None where it is unset or
    empty. Raises ValueError for a ``~`` that stands for no home folder.
    """
    value = os.environ.get(variable)
    if not value:
        return None
    try:
        return Path(value).expanduser()
    except RuntimeError:  # an unknown user, or no HOME and no entry in the user database
        raise ValueError(
            f"{variable} must name a folder, got {value!r}, whose ~ stands for no home folder here"
        ) from None


def cache() -> Path:
    """The folder of downloads and of what is costly to make: ``IMM_CACHE``, else the user's cache;
    raises ValueError where there is none, as in a container without a home folder.
    """
    if own := named("IMM_CACHE"):
        return own
    if base := named("XDG_CACHE_HOME"):
        return base / "imm_lib"
    try:
        return Path.home() / ".cache" / "imm_lib"
    except RuntimeError:
        raise ValueError("IMM_CACHE must name a folder: this user has no home folder") from None


def sources() -> list[Path]:
    """Where data may lie on this machine, in the order of preference: ``IMM_DATA``, if it is set,
    and the cache, if there is one; raises ValueError as :func:`named`.
    """
    found = [folder] if (folder := named("IMM_DATA")) else []
    with suppress(ValueError):  # copies of data are enough where there is no cache
        found.append(cache())
    return found
