"""The search picks the fastest version by a fake clock, keeps it on disk, and keeps nothing that noise explains."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from forerun import overrides
from forerun.build import lower
from forerun.codegen.tvm.lowering import Lowering
from forerun.overrides import Tuned, all_tuned, forget_tuned, keep_tuned, tuned_for, with_overrides
from forerun.tuning.search import MARGIN, search
from tests.compiled import planned_step
from tests.models import FAMILIES

SPEED: dict[str, float] = {"": 1.0, "a": 0.9, "b": 1.2, "ba": 1.5, "bb": 1.1}
NEXT: dict[str, list[str]] = {"": ["a", "b"], "b": ["ba", "bb"], "ba": ["b"]}


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Fake:
    """Versions whose times are made up; the machine's speed varies from call to call, alike for all."""

    executable: Any = None

    def __init__(self, texts: Sequence[str], clock: Clock, noise: Callable[[str, int], float]) -> None:
        self.texts, self.clock, self.noise, self.calls = texts, clock, noise, 0

    def poison(self, state: Any = None) -> None: ...

    def trace(self, version: int, state: Any, rows: Any) -> list[Any]:
        return []

    def timer(self, version: int, state: Any, rows: Any) -> Callable[[], float]:
        def run() -> float:
            self.calls += 1
            seconds = 1.0 / SPEED[self.texts[version]] * self.noise(self.texts[version], self.calls)
            self.clock.now += seconds
            return seconds

        return run


def found(noise: Callable[[str, int], float] = lambda text, call: 1.0, seconds: float = 1e6) -> Any:
    clock = Clock()
    steps: dict[int, Any] = {1: None, 8: None}
    return search(lambda texts: Fake(texts, clock, noise), lambda text: NEXT.get(text, []), None, steps, seconds, clock)


def test_the_search_goes_from_winner_to_winner() -> None:
    best = found()
    assert best.text == "ba"
    assert best.gain == pytest.approx(1.5)


def test_a_search_without_time_keeps_what_it_has() -> None:
    assert found(seconds=40).text == "b"
    assert found(seconds=0) is None


def test_what_wins_by_noise_alone_is_not_kept() -> None:
    """A version that is faster in half of the turns, and as much slower in the others."""
    assert found(lambda text, call: 1.0 if not text else SPEED[text] * (1.3 if call % 2 else 0.8)) is None
    assert MARGIN > 1


def test_what_is_slower_for_some_rows_is_not_kept() -> None:
    """The first row count is timed first: one call of each version, then seven turns or more."""
    slow: Callable[[str, int], float] = lambda text, call: 2.0 * SPEED[text] if text and call <= 44 else 0.3  # noqa: E731
    assert found(slow) is None


def program() -> Any:
    lowered = lower(FAMILIES["llama"](), max_length=64)
    return Lowering(planned_step(lowered.module, lowered.weights, max_rows=64, max_length=64)).program()


def test_choices_are_kept_listed_used_and_forgotten(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORERUN_CACHE_DIR", str(tmp_path))
    generated = program()
    key = generated.program.generated
    name = next(each for each, source in generated.program.sources.items() if source.kind == "products")
    file = f"{name}.schedule"
    assert with_overrides(generated, "cpu", {}) is generated
    kept = Tuned(key, "llama float32", "cpu", "this", {file: "unroll = 2"}, {file: 1.1}, {file: "unroll 1 -> 2"})
    keep_tuned(kept)
    assert all_tuned() == [kept] == [tuned_for(key)]
    assert with_overrides(generated, "cpu", {}).program.overrides == {name: "unroll 1 -> 2"}
    mine = with_overrides(generated, "cpu", {file: generated.kernels.schedules()[name]})
    assert not mine.program.overrides  # a user's file wins, even if it is as generated
    (overrides.folder_of_tuned() or tmp_path).joinpath("damaged.json").write_text("{")
    assert all_tuned() == [kept]
    assert forget_tuned("other") == 0
    assert forget_tuned(key) == 1
    assert all_tuned() == []
    keep_tuned(kept)
    keep_tuned(Tuned(key, "llama float32", "cpu", "this", {}, {}, {}))
    assert tuned_for(key) is None
