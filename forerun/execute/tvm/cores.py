"""How many threads TVM's pool gets: TVM's default is half of the processors, as it assumes hyper-threads."""

import os
from pathlib import Path

TOPOLOGY = Path("/sys/devices/system/cpu")


def physical_cores(allowed: set[int] | None = None, topology: Path = TOPOLOGY) -> int:
    """Returns the number of physical cores that this process may run on; hyper-threads of a core count once."""
    if allowed is None:
        affinity = getattr(os, "sched_getaffinity", None)  # only on Linux
        allowed = set(range(os.cpu_count() or 1)) if affinity is None else set(affinity(0))
    siblings = [topology / f"cpu{number}" / "topology" / "thread_siblings_list" for number in sorted(allowed)]
    if not all(path.is_file() for path in siblings):
        return max(1, len(allowed))
    return len({path.read_text() for path in siblings})


def size_pool() -> None:
    """Sets the pool size that TVM reads at its first parallel launch; a user's own setting stays."""
    os.environ.setdefault("TVM_NUM_THREADS", str(physical_cores()))
