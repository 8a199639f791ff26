"""`certify` passes an executable that keeps the contract, and names the kernel and row of one that does not."""

from typing import ClassVar

import numpy as np
import pytest
from oracle import Kernels, Oracle

from forerun.errors import InvalidOptionError
from forerun.runtime import cases
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


@pytest.mark.parametrize(
    ("max_path", "max_length", "block"), [(1, 32, 16), (2, 12, 4), (64, 256, 32), (4, 2, 16), (4, 3, 1)]
)
def test_all_sizes(max_path: int, max_length: int, block: int):
    oracle = Watched(max_path=max_path, max_length=max_length, block=block)
    assert certify(oracle, cases=20).exact
    assert oracle.last_position == max_length - 1


def test_full_steps_and_all_positions_are_reached():
    oracle = Watched(max_rows=48, max_outputs=8, max_length=300)
    assert certify(oracle, cases=8).exact
    assert max(oracle.steps) == 48
    assert oracle.last_position < 299
    assert certify(oracle, cases=20).exact
    assert oracle.last_position == 299


def test_no_position_past_the_furthest(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cases, "FURTHEST", 120)
    oracle = Watched(max_length=10**6)
    assert certify(oracle, cases=20).exact
    assert oracle.last_position == 119


def test_fault_at_the_last_position_is_found():
    class Last(Kernels):
        def row_logits(self, rows, row, digest):
            return super().row_logits(rows, row, digest) + (rows.positions[row] == 149 and len(rows.tokens) > 1)

    report = certify(Last(max_length=150), cases=20)
    assert report.first is not None
    assert (report.first.case, report.first.position, report.first.kernel) == (cases.END_AT, 149, "head")


def test_wrong_cache_is_not_blamed_on_the_kernel_that_reads_it():
    """The first row of larger steps has a wrong hidden value, which shows only in the rows that read it."""

    class Kept(Kernels):
        misled: ClassVar[dict[int, bool]] = {}  # row of the step under way -> whether it reads a wrong value

        def run(self, entry, state, rows, *more):
            for row, slot in enumerate(rows.slots.tolist()):
                self.wrong(state)[slot] = row == 0 and len(rows.tokens) > 2
            return super().run(entry, state, rows, *more)

        def wrong(self, state):
            if not hasattr(state, "wrong"):
                state.wrong = [False] * len(state.token)
            return state.wrong

        def copy_slots(self, state, source, destination):
            super().copy_slots(state, source, destination)
            kept = [self.wrong(state)[slot] for slot in source.tolist()]
            for slot, wrong in zip(destination.tolist(), kept, strict=True):
                self.wrong(state)[slot] = wrong

        def read(self, state, rows, row):
            base, table = int(rows.bases[row]), rows.block_tables[rows.sequences[row]]
            home = [int(table[j // self.block]) * self.block + j % self.block for j in range(base)]
            path = rows.paths[row, : rows.positions[row] + 1 - base].tolist()
            self.misled[row] = any(self.wrong(state)[slot] for slot in (home + path)[:-1])
            return super().read(state, rows, row)

        def mixed(self, rows, row, digest):
            return super().mixed(rows, row, digest) * np.float32(2 if self.misled[row] else 1)

        def trace(self, state, rows):
            embed, *others = super().trace(state, rows)
            embed.value[0] += len(rows.tokens) > 2
            return [embed, *others]

    report = certify(Kept(), cases=20)
    assert report.first is not None
    assert report.first.row != 0 or report.first.rows < 3
    assert report.first.kernel == "embed"


class Watched(Oracle):
    last_position = -1

    def run(self, entry, state, rows, *more):
        self.last_position = max(self.last_position, int(rows.positions.max()))
        return super().run(entry, state, rows, *more)


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
        def run(self, entry, state, rows, *more):
            result = super().run(entry, state, rows, *more)
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
