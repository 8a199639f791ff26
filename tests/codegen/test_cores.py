"""The thread pool's size: one thread for each physical core that the process may use."""

from pathlib import Path

import pytest

from forerun.execute.tvm.cores import physical_cores


@pytest.fixture
def topology(tmp_path: Path) -> Path:
    """Eight processors on four cores: numbers n and n + 4 are hyper-threads of one core."""
    for number in range(8):
        folder = tmp_path / f"cpu{number}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{number % 4},{number % 4 + 4}\n")
    return tmp_path


@pytest.mark.parametrize(("allowed", "cores"), [(set(range(8)), 4), ({0, 4}, 1), ({0, 1, 5}, 2), ({3}, 1)])
def test_hyper_threads_count_once(topology: Path, allowed: set[int], cores: int) -> None:
    assert physical_cores(allowed, topology) == cores


def test_processors_count_where_the_topology_is_unknown(tmp_path: Path) -> None:
    assert physical_cores({0, 1, 2}, tmp_path) == 3
