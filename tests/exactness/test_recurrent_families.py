"""From one cached step, recurrent models and hybrids give transformers' greedy tokens, bit for bit in any schedule."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import forerun
from forerun.runtime.certify import certify
from forerun.runtime.certify_sessions import certify_sessions
from forerun.runtime.executable import Int32, Rows
from tests.contract import SAMPLINGS, check_bits_of_plain_decoding, check_tokens_of_transformers
from tests.models import RECURRENT

QUICK = ("mamba2", "lfm2", "qwen3_next")
NEW_TOKENS = 32


@pytest.fixture(
    scope="module",
    params=[name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in RECURRENT],
)
def family(request: pytest.FixtureRequest) -> tuple[Any, forerun.CompiledModel]:
    model = RECURRENT[request.param]()
    return model, forerun.compile(model, strategy=forerun.TreeSpec(policy=forerun.Fixed(12)), max_length=160)


def test_greedy_tokens_are_those_of_transformers(family: tuple[Any, forerun.CompiledModel]) -> None:
    check_tokens_of_transformers(*family, NEW_TOKENS)


@pytest.mark.parametrize("options", SAMPLINGS)
def test_bits_are_those_of_plain_decoding(family: tuple[Any, forerun.CompiledModel], options: dict[str, Any]) -> None:
    check_bits_of_plain_decoding(family[1], options, NEW_TOKENS)


def test_random_trees_are_certified(family: tuple[Any, forerun.CompiledModel]) -> None:
    report = certify(family[1].executable, cases=20, seed=1)
    assert report.exact, str(report)


def test_sessions_that_share_steps_and_fork_are_certified(family: tuple[Any, forerun.CompiledModel]) -> None:
    model = family[1]
    report = certify_sessions(model.engine, model.drafter, model.policy, texts=6, seed=3)
    assert report.exact, str(report)


def test_rows_of_several_prompts_in_turn_are_found(
    family: tuple[Any, forerun.CompiledModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts of one step share two records, so the rows of one prompt must be evaluated before those of the next."""
    by_position = property(lambda rows: np.argsort(rows.positions, kind="stable").astype(np.int32))
    monkeypatch.setattr(Rows, "order", by_position)
    model = family[1]
    if not model.executable.row_bytes:
        pytest.skip("the family has no state per row")
    assert not certify_sessions(model.engine, model.drafter, model.policy, texts=6, seed=3).exact


def sibling(rows: Rows, block: int) -> Int32:
    """Each row's parent, but of rows of one depth the next one's."""
    found = SLOTS(rows, block)
    for position in set(rows.positions.tolist()):
        same = (rows.positions == position).nonzero()[0]
        found[same] = found[[*same[1:], same[0]]]
    return found


def late(rows: Rows, block: int) -> Int32:
    """Each row's parent, but the one before it where that is committed."""
    found = SLOTS(rows, block)
    committed = rows.positions == rows.bases
    before = rows.positions - 2
    earlier = rows.block_tables[rows.sequences, before.clip(0) // block] * block + before.clip(0) % block
    found[committed & (before >= 0)] = earlier[committed & (before >= 0)]
    return found


SLOTS = Rows.parent_slots


@pytest.mark.parametrize("fault", [sibling, late])
def test_a_wrong_state_is_found_and_named(
    family: tuple[Any, forerun.CompiledModel], fault: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if family[1].engine.records is None:
        pytest.skip("the model has windows, and no states per row")
    monkeypatch.setattr(Rows, "parent_slots", fault)
    report = certify(family[1].executable, cases=12, seed=1)
    assert not report.exact
    assert report.first is not None
    assert report.first.kernel is not None
    assert "recurrence" in report.first.kernel


def test_a_wrong_window_is_found_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of one depth read the windows of each other's ancestors: the kernel that reads them is to blame."""
    model = forerun.compile(RECURRENT["lfm2"](), strategy="autoregressive", max_length=160)

    def siblings(rows: Rows, block: int) -> Rows:
        paths, own = rows.paths.copy(), rows.positions - rows.bases
        for position in set(rows.positions.tolist()):
            same = ((rows.positions == position) & (own > 0)).nonzero()[0]
            paths[same] = rows.paths[[*same[1:], *same[:1]]]
        deep = (own >= 0).nonzero()[0]
        paths[deep, own[deep]] = rows.paths[deep, own[deep]]
        return replace(rows, paths=paths)

    monkeypatch.setattr(type(model.executable), "placed", lambda self, rows: siblings(rows, self.block))
    report = certify(model.executable, cases=12, seed=1)
    assert not report.exact
    assert report.first is not None
    assert report.first.kernel is not None
    names = [each.name for each in model.executable.step.kernels]
    slots = next(at for at, each in enumerate(names) if each.startswith("ancestors"))
    assert names.index(report.first.kernel) == slots + 1


def test_states_take_memory_for_rows_and_not_for_positions(family: tuple[Any, forerun.CompiledModel]) -> None:
    """A window takes a position's memory, like keys and values."""
    engine = family[1].engine
    if engine.records is None:
        assert engine.executable.row_bytes == 0
        assert engine.executable.slot_bytes > 0
    else:
        assert engine.records.records < engine.cache.blocks * engine.cache.block
