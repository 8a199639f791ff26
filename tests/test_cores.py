"""How many threads there are: one for each physical core that the process may use, or as many as a user says."""

import os
from pathlib import Path

import pytest

import forerun
from forerun import cores
from forerun.cores import physical_cores, quotas, thread_count
from forerun.errors import InvalidOptionError
from tests.models import FAMILIES


@pytest.fixture
def topology(tmp_path: Path) -> Path:
    """Eight processors on four cores: numbers n and n + 4 are hyper-threads of one core."""
    for number in range(8):
        folder = tmp_path / f"cpu{number}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{number % 4},{number % 4 + 4}\n")
    return tmp_path


@pytest.mark.parametrize(("allowed", "found"), [(set(range(8)), 4), ({0, 4}, 1), ({0, 1, 5}, 2), ({3}, 1)])
def test_hyper_threads_count_once(topology: Path, allowed: set[int], found: int) -> None:
    assert physical_cores(allowed, topology) == found


def test_processors_count_where_the_topology_is_unknown(tmp_path: Path) -> None:
    assert physical_cores({0, 1, 2}, tmp_path) == 3


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_affinity_is_respected() -> None:
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert physical_cores() == cores.cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)


def control_groups(folder: Path, membership: str, **files: str) -> list[float]:
    """The quotas of a process whose memberships and control groups are these; names have . for / and __ for ."""
    for name, text in files.items():
        path = folder / "fs" / name.replace("__", ".").replace("_in_", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "cgroup").write_text(membership)
    return list(quotas(folder / "cgroup", folder / "fs"))


def test_quotas_of_version_2(tmp_path: Path) -> None:
    found = control_groups(tmp_path, "0::/a/b\n", a_in_b_in_cpu__max="max 100000\n", a_in_cpu__max="150000 100000\n")
    assert found == [1.5]


def test_quotas_of_version_1(tmp_path: Path) -> None:
    files = {
        "cpu,cpuacct_in_box_in_cpu__cfs_quota_us": "300000\n",
        "cpu,cpuacct_in_box_in_cpu__cfs_period_us": "100000\n",
        "cpu,cpuacct_in_cpu__cfs_quota_us": "-1\n",
        "cpu,cpuacct_in_cpu__cfs_period_us": "100000\n",
        "cpuset_in_box_in_cpu__max": "100000 100000\n",
    }
    assert control_groups(tmp_path, "4:cpuset:/box\n3:cpu,cpuacct:/box\n", **files) == [3.0]


def test_a_group_outside_the_mounted_tree_is_ignored(tmp_path: Path) -> None:
    assert control_groups(tmp_path, "0::/../other\n") == []
    assert list(quotas(tmp_path / "missing", tmp_path)) == []


@pytest.mark.parametrize(("quota", "found"), [(0.2, 1), (1.5, 2), (3.0, 3), (64.0, 4)])
def test_a_quota_is_rounded_up(monkeypatch: pytest.MonkeyPatch, quota: float, found: int) -> None:
    monkeypatch.setattr(cores, "physical_cores", lambda: 4)
    monkeypatch.setattr(cores, "quotas", lambda: iter([quota]))
    assert thread_count() == found


def test_the_option_precedes_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORERUN_THREADS", "5")
    assert (thread_count(), thread_count(3)) == (5, 3)
    monkeypatch.setenv("FORERUN_THREADS", "")
    assert thread_count() == cores.cores()


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", "100000"])
def test_a_bad_variable_is_named(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("FORERUN_THREADS", text)
    with pytest.raises(InvalidOptionError, match=rf"FORERUN_THREADS is '{text}': give a number"):
        thread_count()


def test_compile_takes_threads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    FAMILIES["llama"]().save_pretrained(tmp_path / "model")
    monkeypatch.setenv("FORERUN_CACHE_DIR", str(tmp_path / "cache"))

    def threads(**options: int) -> int:
        model = forerun.compile(tmp_path / "model", "autoregressive", target="cpu", max_length=64, **options)
        return model.engine.executable.runner.threads

    monkeypatch.setenv("FORERUN_THREADS", "3")
    assert [threads(), threads(threads=1), threads(threads=2)] == [3, 1, 2]  # the second and third from disk
    for bad in (0, 1.5, "2", True):
        with pytest.raises(InvalidOptionError, match="threads must be"):
            forerun.compile(tmp_path / "model", threads=bad)
    with pytest.raises(InvalidOptionError, match="reference target takes no threads"):
        forerun.compile(tmp_path / "model", target="reference", threads=2)
