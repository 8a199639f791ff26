"""How many threads a back end on the CPU gets by default, and what a user says instead."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

from forerun.errors import InvalidOptionError

TOPOLOGY, CONTROL, GROUPS = Path("/sys/devices/system/cpu"), Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
VARIABLE = "FORERUN_THREADS"
MOST_THREADS = 1024
"""The most threads that may share a step."""


def thread_count(threads: int | None = None, processes: int = 1) -> int:
    """Returns the given number of threads, else that of `$FORERUN_THREADS`, else one for each core (`cores`), of which
    each of several processes gets its share.

    Raises `InvalidOptionError`.
    """
    if threads is not None:
        return threads
    text = os.environ.get(VARIABLE, "").strip()
    if not text:
        return max(1, cores() // processes)
    if not text.isdecimal() or not 1 <= int(text) <= MOST_THREADS:
        raise InvalidOptionError(f"{VARIABLE} is {text!r}: give a number of threads from 1 to {MOST_THREADS}.")
    return int(text)


def cores() -> int:
    """Returns how many cores this process may keep busy, by its affinity and by the quotas of its control groups."""
    return min([physical_cores(), *(max(1, math.ceil(each)) for each in quotas())])


def physical_cores(allowed: set[int] | None = None, topology: Path = TOPOLOGY) -> int:
    """Returns the number of physical cores that this process may run on; hyper-threads of a core count once."""
    if allowed is None:
        affinity = getattr(os, "sched_getaffinity", None)  # only on Linux
        allowed = set(range(os.cpu_count() or 1)) if affinity is None else set(affinity(0))
    siblings = [topology / f"cpu{number}" / "topology" / "thread_siblings_list" for number in sorted(allowed)]
    if not all(path.is_file() for path in siblings):
        return max(1, len(allowed))
    return len({path.read_text() for path in siblings})


def quotas(groups: Path = GROUPS, control: Path = CONTROL) -> Iterator[float]:
    """Yields the processors that each control group of this process may use, where it is limited (versions 1 and 2)."""
    for line in _words(groups, "\n"):
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = control / controllers if controllers else control
        own = root / path.lstrip("/")
        for group in (each for each in (own, *own.parents) if each.is_relative_to(root)):
            if controllers:
                limit = _words(group / "cpu.cfs_quota_us") + _words(group / "cpu.cfs_period_us")
            else:
                limit = _words(group / "cpu.max")
            if len(limit) == 2 and all(each.isdecimal() for each in limit):  # "max" and "-1" are no limits
                yield int(limit[0]) / int(limit[1])


def _words(file: Path, separator: str | None = None) -> list[str]:
    """Returns a file's words, none if it cannot be read."""
    try:
        return [each for each in file.read_text(encoding="utf-8").split(separator) if each]
    except OSError:
        return []
