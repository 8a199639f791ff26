"""Contexts of many thousand positions: proofs about all pairs cost neither quadratic time nor quadratic memory."""

import resource
import time

import pytest
import torch

import forerun
from forerun.build import lower
from forerun.errors import DeviceMemoryError
from tests.models import FAMILIES, VOCABULARY

LONGEST = 131_072
MEBIBYTE = 1 << 20
CASES = [("llama", LONGEST, "cpu"), ("mistral", LONGEST, "cpu"), ("bloom", 32_768, "reference")]


def settings(family: str, length: int) -> dict[str, int]:
    """BLOOM declares no number of positions."""
    return {} if family == "bloom" else {"max_position_embeddings": length}


@pytest.mark.parametrize(("family", "length"), [("llama", LONGEST), ("mistral", LONGEST), ("bloom", LONGEST)])
def test_lowered_in_little_time_and_memory(family: str, length: int) -> None:
    model = FAMILIES[family](**settings(family, length))
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    assert lower(model, max_length=length).max_length == length
    assert time.perf_counter() - start < 60
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 1024 * MEBIBYTE


@pytest.mark.parametrize(("family", "length", "target"), CASES)
def test_texts_of_a_model_with_room_for_many_positions(family: str, length: int, target: str) -> None:
    model = FAMILIES[family](**settings(family, length))
    compiled = forerun.compile(model, strategy="autoregressive", target=target, max_length=length)
    assert compiled.executable.max_length == length
    prompt = torch.randint(0, VOCABULARY, (300,), generator=torch.Generator().manual_seed(1)).tolist()
    expected = model.generate(torch.tensor([prompt]), max_new_tokens=6, do_sample=False)[0, len(prompt) :]
    assert compiled.generate(prompt, max_new_tokens=6).token_ids == expected.tolist()


def test_a_cache_that_no_memory_holds_is_refused() -> None:
    compiled = forerun.compile(FAMILIES["llama"](), strategy="autoregressive", target="cpu", max_length=64)
    with pytest.raises(DeviceMemoryError, match=r"needs [\d.]+ GB of memory .*16000000000000 positions"):
        compiled.executable.new_state(10**12)
