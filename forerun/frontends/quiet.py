"""Keeps libraries from writing to the terminal.

The rest of the process does not change: only the calling thread is quiet, and only the libraries' own handlers and
progress bars. Handlers that a program has set up still receive everything.
"""

import logging
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from transformers.utils import logging as transformers_logging

LIBRARIES = ("huggingface_hub", "torch", "transformers")
_here = threading.local()
_installing = threading.Lock()
_installed = False


@contextmanager
def quiet_libraries() -> Generator[None]:
    """No log lines or progress bars of torch and transformers from this thread while the body runs."""
    _install()
    before = _is_quiet()
    _here.quiet = True
    try:
        yield
    finally:
        _here.quiet = before


def print_unless_quiet(*values: Any, **options: Any) -> None:
    """Python's print, except in threads in which libraries are quiet."""
    if not _is_quiet():
        print(*values, **options)


def _is_quiet() -> bool:
    return getattr(_here, "quiet", False)


def _heard(record: logging.LogRecord) -> bool:
    """A handler's filter: called by the thread that logs."""
    return not _is_quiet()


def _install() -> None:
    """Give the libraries' handlers the filter, and transformers a hook for its bars; both check the thread."""
    global _installed
    with _installing:
        for name, logger in [*logging.root.manager.loggerDict.items()]:
            if name.split(".")[0] in LIBRARIES and isinstance(logger, logging.Logger):
                for handler in logger.handlers:
                    handler.addFilter(_heard)  # once, however often it is added
        if not _installed:
            _hook_bars()
            _installed = True


def _hook_bars() -> None:
    before: Callable[..., Any] | None = None

    def bar(factory: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if _is_quiet():
            return transformers_logging.EmptyTqdm(*arguments, **options)
        return factory(*arguments, **options) if before is None else before(factory, arguments, options)

    before = transformers_logging.set_tqdm_hook(bar)
