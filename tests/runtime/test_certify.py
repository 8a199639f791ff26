"""`certify` passes an executable that keeps the contract, and names the kernel and row of one that does not."""

import pytest
from oracle import Kernels, Oracle

from forerun.errors import InvalidOptionError
from forerun.runtime.certify import certify


def test_exact_executable_passes():
    done = []
    oracle = Kernels(max_rows=32, max_outputs=24)
    report = certify(oracle, cases=60, seed=3, progress=lambda case, cases: done.append((case, cases)))
    assert report.exact
    assert report.first is None
    assert report.rows > 1500
    assert done[-1] == (60, 60)
    assert max(oracle.steps) > 24
    assert "all bits equal" in str(report)


@pytest.mark.parametrize(("max_path", "max_length", "block"), [(1, 32, 16), (2, 12, 4), (64, 256, 32)])
def test_all_sizes(max_path: int, max_length: int, block: int):
    assert certify(Oracle(max_path=max_path, max_length=max_length, block=block), cases=10).exact


@pytest.mark.parametrize("kernel", ["attention", "head"])
def test_planted_fault_is_found_and_named(kernel: str):
    report = certify(Kernels(planted=kernel), cases=20)
    assert not report.exact
    assert report.first is not None
    assert report.first.kernel == kernel
    assert report.first.rows > 4 or kernel != "head"
    assert 0 < report.first.largest_difference < 1e-4
    assert f"row {report.first.row} of {report.first.rows}" in str(report)
    assert kernel in str(report)


def test_fault_without_trace_is_found():
    class Untraced(Oracle):
        def row_logits(self, rows, row, digest):
            return super().row_logits(rows, row, digest) + (len(rows.tokens) == 3)

    report = certify(Untraced(), cases=20)
    assert report.first is not None
    assert report.first.kernel is None
    assert report.first.rows == 3


def test_wrong_candidates_are_found():
    class LastOfEquals(Oracle):
        def run(self, state, rows):
            result = super().run(state, rows)
            result.candidates[:, :2] = result.candidates[:, 1::-1]
            return result

    report = certify(LastOfEquals(), cases=2)
    assert report.first is not None
    assert report.first.output == "candidates"


def test_same_seed_same_cases():
    reports = [certify(Oracle(), cases=3, seed=5) for _ in range(2)]
    assert reports[0] == reports[1]
    assert certify(Oracle(), cases=3, seed=6) != reports[0]


def test_no_cases():
    with pytest.raises(InvalidOptionError):
        certify(Oracle(), cases=0)
