"""The memory of a process. This module imports nothing large: an import would be counted."""

from __future__ import annotations

import resource
import sys
from pathlib import Path


def peak_bytes() -> int:
    """The peak memory of this process since its start.

    On Linux `ru_maxrss` starts at the parent process's value, so this reads the process's own high-water mark.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def resident_bytes() -> int:
    """The memory of this process now; its peak where the system does not tell."""
    status = Path("/proc/self/status")
    if not status.exists():
        return peak_bytes()
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024
