"""Units on the machines of a cluster, by dask.distributed."""

from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager


@contextmanager
def executor(address: str) -> Iterator[Executor]:
    """The cluster whose scheduler is at ``address``, "tcp://host:8786" for instance, as an
    executor.

    Its workers have this version of the library and the data. What a worker that is lost was at is
    done again by another. Ctrl-C here cancels what has not begun.

    Raises:
        ImportError: dask.distributed is not installed.
        ValueError: no scheduler answers.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise ImportError(
            "--cluster needs dask.distributed: pip install 'imm_lib[cluster]'"
        ) from error
    try:
        client = Client(address, timeout=10, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"--cluster must be the address of a scheduler, got {address!r}: {error}"
        ) from error
    with client, client.get_executor(pure=False) as found:
        yield found
