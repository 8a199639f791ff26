"""Threads and forked processes: work that only one thread may do at a time, and the state that a fork leaves behind.

A forked child has one thread, the one that forked. The thread pools that this thread used before (such as OpenMP's
under torch) belong to it alone and have lost their threads, so it would wait for them forever. Any other thread makes
its own pools, so the child hands such work to a thread that it starts. Work that another thread was doing when the
process forked stays unfinished: the child raises an error instead of waiting.
"""

import contextvars
import functools
import os
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, Protocol, TypeVar

from forerun.errors import ForkError

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class Turn:
    """A reentrant lock. Raises `ForkError` in a child whose parent forked while another thread held it.

    work    what the holder does, for the error: "generating"
    """

    def __init__(self, work: str) -> None:
        self._work = work
        self._lock = threading.RLock()
        self._lost = False
        survive_forks(self)

    def __enter__(self) -> None:
        if self._lost:
            raise lost(self._work)
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def forked(self) -> None:
        """Records, in the child, whether the lock's holder was lost in the fork."""
        if self._lock.acquire(blocking=False):
            self._lock.release()
        else:
            self._lost = True


def lost(work: str) -> ForkError:
    """Returns the error of work that another thread of the parent was doing."""
    return ForkError(
        f"This process was forked while another thread was {work}, and its memory holds half of that work: start "
        "processes with multiprocessing.get_context('spawn'), or fork before or after it."
    )


class Survivor(Protocol):
    """An object that must know that its process was forked."""

    def forked(self) -> None:
        """Called in the child, by its only thread."""
        ...


def survive_forks(survivor: Survivor) -> None:
    """Lets an object know of forks for as long as it exists."""
    _survivors.add(survivor)


_survivors: "weakref.WeakSet[Survivor]" = weakref.WeakSet()
BUILDING = Turn("compiling a model")
"""Held while a model is built: torch.export and transformers' patches during loading serve one thread at a time."""
_forks = 0
_forker: int | None = None
_thread: ThreadPoolExecutor | None = None


def with_live_threads(work: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Wraps a function so that the thread that forked this process runs it in a new thread."""

    @functools.wraps(work)
    def handed_on(*arguments: Parameters.args, **options: Parameters.kwargs) -> Result:
        if threading.get_ident() != _forker:
            return work(*arguments, **options)
        return _helper().submit(contextvars.copy_context().run, work, *arguments, **options).result()

    return handed_on


def forks() -> int:
    """Returns how many forks lie between this process and the first one that imported forerun."""
    return _forks


def one_at_a_time(work: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Wraps a function so that only one thread runs it at a time."""

    @functools.wraps(work)
    def waiting(*arguments: Parameters.args, **options: Parameters.kwargs) -> Result:
        with BUILDING:
            return work(*arguments, **options)

    return waiting


def require_process(process: int) -> None:
    """Raises `ForkError` if GPU objects of one process are used in another."""
    if process != os.getpid():
        raise gpu_of_parent()


def gpu_of_parent() -> ForkError:
    return ForkError(
        "A forked process cannot use the GPU of its parent: start processes with multiprocessing.get_context('spawn') "
        "and compile the model there."
    )


def _helper() -> ThreadPoolExecutor:
    global _thread
    if _thread is None:
        _thread = ThreadPoolExecutor(1, "forerun")
    return _thread


def _in_child() -> None:
    global _forks, _forker, _thread
    _forks += 1
    _forker, _thread = threading.get_ident(), None
    for each in list(_survivors):
        each.forked()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_in_child)
