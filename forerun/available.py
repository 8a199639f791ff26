"""How much memory this process may still allocate, so that a cache that cannot fit is a clear error in advance."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from forerun.errors import DeviceMemoryError

GIGABYTE = 1e9
MEMORY, CONTROL = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


def available_bytes() -> int | None:
    """Returns the least that the system, the process's control group and its limits leave; None if it is unknown."""
    return min((max(0, each) for each in _limits()), default=None)


def require_memory(needed: Mapping[str, int], available: int | None = None) -> None:
    """Raises DeviceMemoryError if a model's parts, in bytes by name, exceed what is available (`available_bytes`)."""
    available = available_bytes() if available is None else available
    total = sum(needed.values())
    if available is None or total <= available:
        return
    parts = ", ".join(f"{name} {count / GIGABYTE:.2f}" for name, count in needed.items())
    raise DeviceMemoryError(
        f"The model needs {total / GIGABYTE:.2f} GB of memory ({parts}), but {available / GIGABYTE:.2f} GB are "
        "available; compile with a smaller max_length."
    )


def _limits() -> Iterator[int]:
    meminfo = _numbers(MEMORY)
    if "MemAvailable:" in meminfo:
        yield 1024 * (meminfo["MemAvailable:"] + meminfo.get("SwapFree:", 0))
    elif "SC_PHYS_PAGES" in os.sysconf_names:
        yield os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for group in _groups():
        most, used = _number(group / "memory.max"), _number(group / "memory.current")
        if most is not None and used is not None:
            # File pages are reclaimed when memory is needed.
            yield most - used + _numbers(group / "memory.stat").get("inactive_file", 0)
    yield from _resource_limits()


def _groups() -> Iterator[Path]:
    """Yields this process's control group and its ancestors (version 2)."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        if line.startswith("0::/"):
            own = CONTROL / line.removeprefix("0::/")
            yield from (each for each in (own, *own.parents) if each.is_relative_to(CONTROL))


def _resource_limits() -> Iterator[int]:
    """Yields what `ulimit -v` leaves."""
    try:
        import resource
    except ImportError:  # Windows
        return
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    used = _number(Path("/proc/self/statm"))
    if most != resource.RLIM_INFINITY and used is not None:
        yield most - used * os.sysconf("SC_PAGE_SIZE")


def _number(file: Path) -> int | None:
    """Returns the first word of a file if it is a number, else None."""
    try:
        word = file.read_text(encoding="utf-8").split()[0]
    except (OSError, IndexError):
        return None
    return int(word) if word.isdecimal() else None


def _numbers(file: Path) -> dict[str, int]:
    """Returns name and number from those lines of a file that begin with both."""
    try:
        rows = [line.split() for line in file.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return {}
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdecimal()}
