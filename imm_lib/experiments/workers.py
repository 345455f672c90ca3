"""Tasks in processes of their own: each answer as soon as it is there, and a stop that is at
once.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import connection
from typing import Any

PATIENCE = 5.0
"""Seconds that a process has to end when it is told to, before it is killed."""


def answers(
    function: Callable[[Any], Any], tasks: Iterable[Any], jobs: int, until: float = math.inf
) -> Iterator[tuple[Any, Any]]:
    """Every task with its answer, ``jobs`` of them at a time, in the order in which they end.

    Args:
        function: of a module, called in another process.
        tasks: asked for the next one, again and again, while a process is free.
        jobs: processes.
        until: on the clock of ``time.monotonic``; what is at work then is stopped, unanswered.

    Raises:
        RuntimeError: a process died; what a function raised is raised here.
    """
    context, waiting = multiprocessing.get_context("spawn"), iter(tasks)
    processes: dict[Any, Any] = {}  # by pipe
    idle: list[Any] = []
    busy: dict[Any, Any] = {}
    try:
        while True:
            while (idle or len(processes) < jobs) and (task := next(waiting, None)) is not None:
                if not idle:
                    process, pipe = _started(context, function)
                    processes[pipe] = process
                    idle.append(pipe)
                busy[idle[-1]] = task
                idle.pop().send(task)
            if not busy:
                return
            left = None if math.isinf(until) else max(0.0, until - time.monotonic())
            ready = connection.wait(list(busy), left)
            if not ready:
                return
            for pipe in ready:
                task = busy.pop(pipe)
                answer = _received(pipe, task)
                idle.append(pipe)
                yield task, answer
    finally:
        for pipe, process in processes.items():
            pipe.close()  # which ends an idle process
            if pipe not in idle:
                process.terminate()
        for process in processes.values():
            process.join(PATIENCE)
            if process.is_alive():
                process.kill()
                process.join()


def _started(context: Any, function: Callable[[Any], Any]) -> tuple[Any, Any]:
    """A process that serves ``function``, and the pipe to it."""
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, function), daemon=True)
    with _deaf():
        process.start()
    theirs.close()
    return process, ours


def _received(pipe: Any, task: object) -> Any:
    try:
        answer = pipe.recv()
    except EOFError:
        raise RuntimeError(f"the process at work on {task} died") from None
    if isinstance(answer, BaseException):
        raise answer
    return answer


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """Processes started here do not hear Ctrl-C: the one that started them stops them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _serve(pipe: Any, function: Callable[[Any], Any]) -> None:
    """Answer one task after another, for as long as the process that asks is there."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            task = pipe.recv()
            try:
                answer = function(task)
            except Exception as error:
                answer = error
            try:
                pipe.send(answer)
            except (AttributeError, TypeError, ValueError) as error:  # what no pipe carries
                pipe.send(RuntimeError(f"the answer to {task} cannot be sent: {error}"))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
