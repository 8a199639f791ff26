"""`$FORERUN_LOG`: what forerun tells on standard error while it works.

    FORERUN_LOG=passes,kernels forerun generate MODEL --prompt ...

    passes    every pass: operations before and after, time, what changed
    kernels   every distinct kernel that is generated, and the places that use it
    steps     every step of a generation: rows, accepted tokens, time

Each is a logger of Python's `logging` (`forerun.passes`, ...), which a program may configure by itself.
"""

from __future__ import annotations

import logging
import os
import sys

from forerun.errors import InvalidOptionError

VARIABLE = "FORERUN_LOG"
TOPICS = ("passes", "kernels", "steps")


def logger(topic: str) -> logging.Logger:
    """Returns the logger of a topic."""
    return logging.getLogger(f"forerun.{topic}")


def log_as_asked() -> None:
    """Shows the topics that the environment names. Raises `InvalidOptionError` for one that there is not."""
    given = [each.strip() for each in os.environ.get(VARIABLE, "").split(",")]
    for topic in filter(None, given):
        if topic not in TOPICS:
            raise InvalidOptionError(f"{VARIABLE} names {topic!r}; the topics are {', '.join(TOPICS)}.")
        log = logger(topic)
        if not any(isinstance(each, _Shown) for each in log.handlers):
            log.addHandler(_Shown())
            log.setLevel(logging.INFO)
            log.propagate = False


class _Shown(logging.Handler):
    """Writes lines to what is standard error at the time, each behind its topic."""

    def emit(self, record: logging.LogRecord) -> None:
        print(f"[{record.name.rpartition('.')[2]}] {self.format(record)}", file=sys.stderr)
