"""What a user calls, and what a user may get wrong."""

import threading
from itertools import zip_longest

import numpy as np
import pytest
import torch
from oracle import Oracle
from transformers import TextStreamer

import forerun
from forerun.errors import ForerunError, InvalidOptionError, PromptError, TooLongError
from forerun.runtime.drafters.merged import Merged
from forerun.runtime.drafters.prompt_lookup import PromptLookup
from forerun.runtime.drafters.token_recycling import TokenRecycling
from forerun.runtime.engine import Engine
from forerun.runtime.model import CompiledModel
from forerun.runtime.policy import Fixed
from forerun.runtime.request import Request
from forerun.runtime.tree import chain, merge_members, root_only
from tests.models import FAMILIES


class Words:
    """A tokenizer of numbers."""

    def decode(self, token_ids, skip_special_tokens=False, **options):
        return "".join(f"{token} " for token in token_ids)


def speculative(oracle: Oracle, **options) -> CompiledModel:
    drafter = Merged([PromptLookup(), TokenRecycling(oracle.vocabulary)])
    return CompiledModel(oracle, drafter, Fixed(8), **options)


@pytest.fixture
def model() -> CompiledModel:
    return speculative(Oracle(), tokenizer=Words())


@pytest.mark.parametrize("options", [{}, {"do_sample": True, "temperature": 0.8, "top_k": 10, "seed": 4}])
def test_generation(model: CompiledModel, options: dict):
    plain = CompiledModel(Oracle()).generate([1, 2, 3], 30, return_logits=True, **options)
    generation = model.generate([1, 2, 3], 30, return_logits=True, **options)
    assert generation.token_ids == plain.token_ids
    assert np.array_equal(generation.logits, plain.logits)
    assert generation.logits.shape == (30, model.executable.vocabulary)
    assert generation.logits.dtype == np.float32
    assert generation.text == Words().decode(generation.token_ids)
    stats = generation.stats
    assert stats.tokens == 30
    assert stats.steps <= stats.rows
    assert stats.accepted_length == 30 / stats.steps
    assert stats.tokens_per_second == 30 / stats.decode_seconds
    assert stats.prefill_seconds > 0
    assert plain.stats.steps == plain.stats.rows == 30
    assert plain.text is None


def test_prompts_of_every_kind(model: CompiledModel):
    expected = model.generate([1, 2, 3], 5).token_ids
    for prompt in (
        (1, 2, 3),
        np.array([1, 2, 3]),
        np.array([[1, 2, 3]], np.uint8),
        torch.tensor([1, 2, 3]),
        torch.tensor([[1, 2, 3]], dtype=torch.int32),
    ):
        generation = model.generate(prompt, 5)
        assert generation.token_ids == expected
        assert all(type(token) is int for token in generation.token_ids)
    assert generation.logits is None


@pytest.mark.parametrize(
    ("prompt", "sentence"),
    [
        ([], "empty"),
        (torch.empty(1, 0, dtype=torch.int64), "empty"),
        ([1, 24], "token id 24 is outside the vocabulary of 24"),
        ([1, -2], "token id -2"),
        ([[1], []], "empty"),
        ([[1], [2, 99]], "token id 99"),
        ([[1], 2], "one list of token ids"),
        ([[[1], [2]]], "shape"),
        (5, "shape"),
        ([1.5], "float64"),
        ("text", "has no tokenizer"),
        (["text"], "tokenizer"),
    ],
)
def test_wrong_prompts(model: CompiledModel, prompt, sentence: str):
    with pytest.raises(PromptError, match=sentence):
        model.generate(prompt)


@pytest.mark.parametrize(
    ("options", "kind", "sentence"),
    [
        ({"max_new_tokens": 0}, InvalidOptionError, "max_new_tokens"),
        ({"max_new_tokens": 2.5}, InvalidOptionError, "max_new_tokens"),
        ({"max_new_tokens": 62}, TooLongError, "max_length 64"),
        ({"top_p": 0.5}, InvalidOptionError, "do_sample=True"),
        ({"eos_token_id": "end"}, InvalidOptionError, "eos_token_id"),
    ],
)
def test_wrong_options(model: CompiledModel, options: dict, kind: type[ForerunError], sentence: str):
    with pytest.raises(kind, match=sentence):
        model.generate([1, 2, 3], **options)


def test_the_longest_text(model: CompiledModel):
    assert len(model.generate([1, 2, 3], 61).token_ids) == 61
    assert len(model.generate([1] * 63, 1).token_ids) == 1


def test_end_of_text():
    free = CompiledModel(Oracle()).generate([1, 2], 40).token_ids
    last = free[20]
    first = free.index(last)
    for eos in (last, [last], torch.tensor([last, 23 if 23 not in free else last])):
        model = speculative(Oracle())
        for _ in range(2):
            assert model.generate([1, 2], 40, eos_token_id=eos).token_ids == free[: first + 1]
    model = speculative(Oracle(), eos_token_ids=[last])
    assert model.generate([1, 2], 40).token_ids == free[: first + 1]
    assert model.generate([1, 2], 40, eos_token_id=[]).token_ids == free


class Collector:
    def __init__(self):
        self.values, self.ended = [], 0

    def put(self, value):
        self.values.append(value)

    def end(self):
        self.ended += 1


def test_streamers(model: CompiledModel, capsys: pytest.CaptureFixture[str]):
    collector = Collector()
    generation = model.generate([1, 2, 3], 20, streamer=collector)
    assert collector.values[0].tolist() == [[1, 2, 3]]
    assert torch.cat(collector.values[1:]).tolist() == generation.token_ids
    assert collector.ended == 1
    model.generate([1, 2, 3], 20, streamer=TextStreamer(Words(), skip_prompt=True))
    assert capsys.readouterr().out.split() == [str(token) for token in generation.token_ids]


def test_a_failed_call_leaves_the_model_as_it_was(model: CompiledModel):
    expected = model.generate([1, 2, 3], 20).token_ids

    class Failing(Collector):
        def put(self, value):
            super().put(value)
            if len(self.values) == 3:
                raise RuntimeError("the reader left")

    kept = []
    for _ in range(3):
        try:
            model.generate([1, 2, 3], 20, streamer=Failing())
        except RuntimeError as error:
            kept.append(error)  # as a notebook does; its traceback holds the frames
    run = model.executable.run
    model.executable.run = lambda *arguments: 1 / 0
    with pytest.raises(ZeroDivisionError):
        model.generate([1, 2, 3], 20)
    model.executable.run = run
    assert len(kept) == 3
    assert model.generate([1, 2, 3], 61).token_ids[:20] == expected


def test_threads_take_turns(model: CompiledModel):
    expected = [model.generate([prompt], 30).token_ids for prompt in range(4)]
    found = [[] for _ in range(4)]

    def work(prompt: int) -> None:
        found[prompt] = model.generate([prompt], 30).token_ids

    threads = [threading.Thread(target=work, args=(prompt,)) for prompt in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected


def test_steps_of_two_requests_may_alternate():
    oracle = Oracle(max_length=32)
    model = speculative(oracle, engine=Engine(oracle, blocks=24))
    expected = [model.generate([prompt], 25).token_ids for prompt in (1, 2)]
    both = [model.steps(Request([prompt], 25)) for prompt in (1, 2)]
    found = [[], []]
    for steps in zip_longest(*both):
        for tokens, step in zip(found, steps, strict=True):
            tokens.extend(step.tokens if step else [])
    assert found == expected


def test_evaluating_trees():
    oracle = Oracle(max_rows=32, max_outputs=32)
    model = CompiledModel(oracle)
    prompts = [[1, 2, 3], [4]]
    trees = [merge_members([chain(3, [5, 6]), chain(3, [7])])[0], chain(4, [8])]
    for prompt, tree, logits in zip(prompts, trees, model.evaluate_trees(prompts, trees), strict=True):
        for row in range(len(tree)):
            history = prompt[:-1] + tree.token[tree.path(row)].tolist()
            assert np.array_equal(logits[row], oracle.logits(history))
    with pytest.raises(InvalidOptionError, match="last token, 3, not 4"):
        model.evaluate_trees([[1, 3]], [root_only(4)])
    with pytest.raises(InvalidOptionError, match="one tree for each"):
        model.evaluate_trees([[1, 3]], [])


def test_a_compiled_model_says_what_it_is(tmp_path):
    module = FAMILIES["llama"]()
    module.save_pretrained(tmp_path / "mine")
    strategy = forerun.TreeSpec(drafters=[forerun.PromptLookup()], policy=forerun.Fixed(4))
    model = forerun.compile(tmp_path / "mine", strategy, torch.float32, "reference", max_length=48)
    assert (model.target, model.dtype, model.max_length, model.strategy) == ("reference", "float32", 48, strategy)
    for part in ("'mine'", "target='reference'", "dtype='float32'", "max_length=48", "layers=2", "PromptLookup"):
        assert part in repr(model)
    other = forerun.with_strategy(model, "autoregressive")
    assert other.strategy == forerun.Autoregressive()
    assert (other.target, other.dtype) == ("reference", "float32")
    assert "'mine'" in repr(other)
    assert "'LlamaForCausalLM'" in repr(forerun.compile(module, "autoregressive", target="reference", max_length=16))
