"""Several processes give the bits of one: any layout, strategy and batch. Ranks that do not fit are refused."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import forerun
from forerun.distributed import Layout, join, joining, wire
from forerun.distributed.member import Member
from forerun.errors import DistributedError, InvalidOptionError
from forerun.progress import SilentProgress
from forerun.runtime.certify import certify
from forerun.runtime.certify_sessions import certify_sessions
from forerun.runtime.executable import Exchange
from tests.distributed.ranks import run
from tests.exactness.test_native_file import written
from tests.models import FAMILIES, RECURRENT

PROMPTS = [[5, 6, 7, 8, 5, 6, 7], [9, 8, 7, 6, 5, 4, 3, 2, 1], [3, 3, 3, 4, 4, 4], [11, 12, 13, 14, 15, 11, 12]]
OPTIONS: dict[str, Any] = {"max_length": 96, "progress": SilentProgress(), "threads": 1}
TOGETHER = ("llama", "gpt2", "falcon", "mixtral", "bamba")
MODELS = {**FAMILIES, **RECURRENT}

Text = tuple[list[int], np.ndarray]


def texts(model: forerun.CompiledModel) -> list[Text]:
    """The texts of each prompt by itself, and of all at once, with their logits."""
    options: dict[str, Any] = {"max_new_tokens": 16, "return_logits": True}
    found = [*(model.generate(each, **options) for each in PROMPTS[:2]), *model.generate(PROMPTS, **options)]
    return [(each.token_ids, np.asarray(each.logits)) for each in found]


def generated(rank: int, layout: Layout, family: str, strategy: str) -> list[Text] | None:
    with join(MODELS[family](), layout, strategy, **OPTIONS) as model:
        return None if model is None else texts(model)


def check(layout: Layout, folder: Path, family: str, strategy: str) -> None:
    found, *others = run(layout, folder, generated, family, strategy)
    assert others == [None] * (layout.world - 1)
    expected = texts(forerun.compile(MODELS[family](), strategy, **OPTIONS))
    for (ids, logits), (own_ids, own_logits) in zip(found, expected, strict=True):
        assert ids == own_ids
        assert np.array_equal(logits, own_logits)


def test_two_processes_give_the_bits_of_one(tmp_path: Path) -> None:
    check(Layout(1, 1), tmp_path, "llama", "tree_spec")


def test_a_part_drafts_and_steps_are_entered_late(tmp_path: Path) -> None:
    check(Layout(1, 1, 1), tmp_path, "llama", "layer_skip")


def test_four_processes_with_experts_give_the_bits_of_one(tmp_path: Path) -> None:
    check(Layout(2, 2, groups=2), tmp_path, "mixtral", "tree_spec")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["autoregressive", "tree_spec", "layer_skip"])
@pytest.mark.parametrize("layout", [Layout(1, 1, 1), Layout(2, 2, groups=2)], ids=["2", "4"])
@pytest.mark.parametrize("family", TOGETHER)
def test_processes_give_the_bits_of_one(tmp_path: Path, family: str, layout: Layout, strategy: str) -> None:
    check(layout, tmp_path, family, strategy)


def generated_natively(rank: int, layout: Layout, file: Path) -> list[Text] | None:
    with join(file, layout, "tree_spec", "native", **OPTIONS) as model:
        return None if model is None else texts(model)


@pytest.mark.real
@pytest.mark.slow
def test_ranks_divide_the_blocks_of_a_file(tmp_path: Path) -> None:
    layout = Layout(1, 2, groups=2)
    file = written(tmp_path / "tiny.gguf")
    found, *_ = run(layout, tmp_path, generated_natively, file)
    expected = texts(forerun.compile(file, "tree_spec", "native", **OPTIONS))
    for (ids, logits), (own_ids, own_logits) in zip(found, expected, strict=True):
        assert ids == own_ids
        assert np.array_equal(logits, own_logits)


def certified(rank: int, layout: Layout, family: str) -> list[tuple[bool, str]] | None:
    """Random trees, slots and chunkings, and sessions that share steps, beginnings and forks."""
    with join(MODELS[family](), layout, forerun.TreeSpec(policy=forerun.Fixed(8)), **OPTIONS) as model:
        if model is None:
            return None
        reports = certify(model.executable, 10), certify_sessions(model.engine, model.drafter, model.policy, 18)
        return [(each.exact, str(each)) for each in reports]


@pytest.mark.parametrize(
    ("family", "layout"),
    [
        ("llama", Layout(2, 1, 2)),
        pytest.param("bamba", Layout(2, 1, 2), marks=pytest.mark.slow),
        pytest.param("gemma2", Layout(3, 1), marks=pytest.mark.slow),
        pytest.param("mixtral", Layout(1, 2, 2), marks=pytest.mark.slow),
    ],
)
def test_several_ranks_are_certified(tmp_path: Path, family: str, layout: Layout) -> None:
    for exact, report in run(layout, tmp_path, certified, family)[0]:
        assert exact, report


# --- ranks that do not fit together


def joined_with_seed(rank: int, layout: Layout, other: int) -> None:
    with join(FAMILIES["llama"](seed=int(rank == other)), layout, "autoregressive", **OPTIONS):
        raise AssertionError("joined")


def test_a_rank_with_other_weights_is_refused(tmp_path: Path) -> None:
    for error in run(Layout(1, 1, 1), tmp_path, joined_with_seed, 1):
        assert isinstance(error, DistributedError)
        assert str(error).startswith("rank 1 (feed-forward) has another model than rank 0")


def joined_with_another_step(rank: int, layout: Layout) -> None:
    model = FAMILIES["llama"]()
    for module in model.modules():
        if rank and hasattr(module, "act_fn"):
            module.act_fn = torch.nn.GELU()
    with join(model, layout, "autoregressive", **OPTIONS):
        raise AssertionError("joined")


def test_a_rank_with_another_step_is_refused(tmp_path: Path) -> None:
    for error in run(Layout(1, 1, 1), tmp_path, joined_with_another_step):
        assert isinstance(error, DistributedError)
        assert str(error).startswith("rank 1 (feed-forward) has another step than rank 0")


def joined_as(rank: int, layout: Layout, version: str) -> None:
    if rank:
        joining.__version__ = version
    with join(FAMILIES["llama"](), layout, "autoregressive", **OPTIONS):
        raise AssertionError("joined")


def test_a_rank_with_another_version_is_refused(tmp_path: Path) -> None:
    for error in run(Layout(1, 1, 1), tmp_path, joined_as, "0.0.9"):
        assert isinstance(error, DistributedError)
        assert f"has another forerun than rank 0 (0.0.9, not {forerun.__version__})" in str(error)


def joined_in(rank: int, layout: Layout) -> None:
    with join(FAMILIES["llama"](), Layout(2, 2, 1), "autoregressive", **OPTIONS):
        raise AssertionError("joined")


def test_another_world_size_is_refused(tmp_path: Path) -> None:
    for error in run(Layout(1, 1, 1), tmp_path, joined_in):
        assert isinstance(error, InvalidOptionError)
        assert "2 attention ranks and 2 feed-forward ranks are 4, and the group has 2: start 4 processes" in str(error)


# --- faults


def failing(rank: int, layout: Layout, folder: Path, other: int, fault: str) -> tuple[float, str]:
    """A feed-forward rank fails at its third step; the others say when they noticed, and how."""
    if rank == other:
        steps = []
        feed = Member._feed

        def counted(self: Member, *arrays: Any) -> None:
            steps.append(arrays)
            if len(steps) == 3:
                (folder / "failed").write_text(str(time.time()))
                if fault == "killed":
                    os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(12)
            feed(self, *arrays)

        Member._feed = counted  # type: ignore[method-assign]
    try:
        with join(FAMILIES["llama"](), layout, "autoregressive", patience=4.0, **OPTIONS) as model:
            assert model is not None
            model.generate(PROMPTS, max_new_tokens=16)
    except DistributedError as error:
        return time.time() - float((folder / "failed").read_text()), str(error)
    raise AssertionError("nothing was noticed")


@pytest.mark.parametrize(("layout", "fault"), [(Layout(1, 1, 1), "hangs"), (Layout(2, 2, groups=2), "killed")])
def test_a_rank_that_fails_ends_the_others(tmp_path: Path, layout: Layout, fault: str) -> None:
    other = layout.world - 1
    found = run(layout, tmp_path, failing, tmp_path, other, fault)
    if fault == "killed":
        assert found.pop() is None
    sentences = [sentence for _, sentence in found[:other]]
    assert len(sentences) == other
    assert max(seconds for seconds, _ in found[:other]) < 10
    assert any(each.startswith(f"rank {other} (feed-forward) does not answer") for each in sentences)
    assert all("does not answer" in each for each in sentences)


WRONG = [("y", (2, 4), np.float32), ("x", (4, 2), np.float32), ("x", (2, 4), np.int32), ("x", (3, 4), np.float32)]
"""Payloads that are not the expected one, by name, shape and element type."""


def told_something_else(rank: int, layout: Layout) -> list[str]:
    own, sentences = wire.Wire(layout, 128), list[str]()
    for payload, shape, dtype in WRONG:
        if rank:
            own.send(0, payload, np.ones(shape, dtype), 1)
            own.flush()
            continue
        expected = np.zeros((2, 4), np.float32)
        with pytest.raises(DistributedError) as error:
            own.expect(1, Exchange("x", expected, True), expected, 1).wait()
        sentences.append(str(error.value))
    return sentences


def test_a_message_of_another_type_is_an_error(tmp_path: Path) -> None:
    sentences = run(Layout(1, 1, 1), tmp_path, told_something_else)[0]
    assert len(sentences) == len(WRONG)
    assert all("rank 1 (feed-forward) sent something else than x, float32 [2, 4]" in each for each in sentences)


def too_large(rank: int, layout: Layout) -> None:
    wire.Wire(layout, 128).send(0, "x", np.ones(64, np.float32), 1)


def test_a_payload_larger_than_agreed_is_not_sent(tmp_path: Path) -> None:
    for error in run(Layout(1, 1, 1), tmp_path, too_large):
        assert "x has 256 bytes, and payloads have at most 128" in str(error)


def test_a_layout_without_ranks_is_refused() -> None:
    with pytest.raises(InvalidOptionError, match="ffn must be at least 1, not 0"):
        Layout(1, 0)
