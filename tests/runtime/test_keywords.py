"""The keywords of `generate` that users of transformers write have transformers' meanings; no others are accepted."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from oracle import Oracle
from transformers import BatchEncoding, GenerationConfig, PreTrainedTokenizerFast, TextIteratorStreamer
from transformers.generation import (
    EosTokenCriteria,
    LogitsProcessorList,
    MaxLengthCriteria,
    MinNewTokensLengthLogitsProcessor,
    StoppingCriteriaList,
)

from forerun.errors import ForerunError, InvalidOptionError, PromptError, TooLongError
from forerun.runtime.drafters.merged import Merged
from forerun.runtime.drafters.prompt_lookup import PromptLookup
from forerun.runtime.drafters.token_recycling import TokenRecycling
from forerun.runtime.known_keywords import NO_EFFECT, known_keywords
from forerun.runtime.model import CompiledModel
from forerun.runtime.policy import Fixed

PROMPT = [1, 2, 3]
SAMPLED: dict[str, Any] = {"do_sample": True, "temperature": 0.9, "seed": 5}


def speculative(noise: float = 1.0, **options: Any) -> CompiledModel:
    oracle = Oracle(noise=noise)
    return CompiledModel(oracle, Merged([PromptLookup(), TokenRecycling(oracle.vocabulary)]), Fixed(8), **options)


def plain(noise: float = 1.0, **options: Any) -> CompiledModel:
    return CompiledModel(Oracle(noise=noise), **options)


@pytest.fixture
def model() -> CompiledModel:
    return speculative()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models, pre_tokenizers

    inner = Tokenizer(models.WordLevel({chr(97 + token): token for token in range(24)}, unk_token="a"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    found = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="a", eos_token="x")
    found.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    return found


def test_what_tokenizers_return(model: CompiledModel, tokenizer: PreTrainedTokenizerFast) -> None:
    expected = model.generate(PROMPT, 6).token_ids
    for tensors in ("pt", "np", None):
        encoding = tokenizer("b c d", return_tensors=tensors, return_token_type_ids=True)
        assert isinstance(encoding, BatchEncoding)
        assert {"attention_mask", "token_type_ids"} <= set(encoding)
        assert model.generate(**encoding, max_new_tokens=6).token_ids == expected
        assert model.generate(encoding, max_new_tokens=6).token_ids == expected
        assert model.generate(inputs=encoding, max_new_tokens=6).token_ids == expected
        assert model.generate(inputs=encoding["input_ids"], max_new_tokens=6).token_ids == expected
        assert model.generate(dict(encoding), max_new_tokens=6).token_ids == expected
        chat = [{"role": "user", "content": "b c d"}]
        for as_dict in (True, False):
            templated = tokenizer.apply_chat_template(chat, return_tensors=tensors, return_dict=as_dict)
            assert model.generate(templated, max_new_tokens=6).token_ids == expected
        templated = tokenizer.apply_chat_template(chat, return_tensors=tensors, return_dict=True)
        assert model.generate(**templated, max_new_tokens=6).token_ids == expected
    assert model.generate(tokenizer._tokenizer.encode("b c d"), 6).token_ids == expected  # of the package tokenizers


@pytest.mark.parametrize(
    "companions",
    [
        {"attention_mask": [1, 1, 1]},
        {"attention_mask": np.ones((1, 3), np.int8)},
        {"attention_mask": torch.ones(1, 3, dtype=torch.bool)},
        {"attention_mask": torch.ones(3, dtype=torch.float16)},
        {"attention_mask": None},
        {"token_type_ids": torch.zeros(1, 3, dtype=torch.long)},
        {"position_ids": torch.arange(3)[None]},
    ],
)
def test_what_says_nothing_new_of_a_prompt(model: CompiledModel, companions: dict[str, Any]) -> None:
    assert model.generate(PROMPT, 6, **companions).token_ids == model.generate(PROMPT, 6).token_ids


@pytest.mark.parametrize(
    ("companions", "sentence"),
    [
        ({"attention_mask": [1, 0, 1]}, "not a run of ones"),
        ({"attention_mask": torch.tensor([[0, 0, 0]])}, "not a run of ones"),
        ({"attention_mask": [1, 2, 1]}, "attention_mask is 2 at position 1"),
        ({"attention_mask": [1.0, float("nan"), 1]}, "attention_mask is nan at position 1"),
        ({"attention_mask": [1, 1]}, r"attention_mask has the shape \[2\], but the prompt has 3 tokens"),
        ({"attention_mask": np.ones((1, 1, 3, 3))}, "attention_mask has the shape"),
        ({"attention_mask": [[1, 1, 1], [1, 1, 1]]}, "attention_mask has the shape"),
        ({"attention_mask": "111"}, "attention_mask"),
        ({"attention_mask": 1}, "attention_mask"),
        ({"attention_mask": [[1], [1, 1]]}, "attention_mask must be an array of numbers"),
        ({"token_type_ids": [0, 0, 1]}, "token_type_ids is 1 at position 2"),
        ({"position_ids": [1, 2, 3]}, "position_ids is 1 at position 0"),
        ({"inputs": PROMPT}, "twice"),
    ],
)
def test_what_would_change_the_prompt_is_refused(model: CompiledModel, companions: dict, sentence: str) -> None:
    with pytest.raises(PromptError, match=sentence):
        model.generate(PROMPT, 6, **companions)
    with pytest.raises(PromptError, match=sentence.removeprefix("^")):
        model.generate({"input_ids": PROMPT} | companions if "inputs" not in companions else PROMPT, 6, **companions)


@pytest.mark.parametrize(
    "options",
    [
        {"use_cache": True},
        {"use_cache": False},
        {"pad_token_id": 0},
        {"pad_token_id": torch.tensor(2)},
        {"num_beams": 1, "num_return_sequences": np.int64(1)},
        {"top_k": None, "top_p": None, "temperature": None},
        {"do_sample": False, "temperature": 1.0, "top_p": 1.0, "top_k": 0},
        {"do_sample": np.bool_(False)},
        {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "logits_processor": LogitsProcessorList()},
        {"presence_penalty": 0.0, "frequency_penalty": 0, "logit_bias": {}, "sequence_bias": [], "bad_words_ids": []},
        {"suppress_tokens": [], "begin_suppress_tokens": (), "forced_bos_token_id": [], "forced_eos_token_id": []},
        {"min_p": 0.0, "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0, "renormalize_logits": False},
        {"prompt_lookup_num_tokens": 10, "cache_implementation": "static"},
        {"return_dict_in_generate": True},
        {"return_dict_in_generate": False, "output_attentions": False},
        {"stopping_criteria": StoppingCriteriaList()},
        {"generation_config": GenerationConfig(temperature=0.7, top_p=0.9)},
        {"generation_config": None},
    ],
)
def test_what_changes_no_text(model: CompiledModel, options: dict[str, Any]) -> None:
    assert model.generate(PROMPT, 9, **options).token_ids == plain().generate(PROMPT, 9).token_ids


def test_filters_that_filter_nothing_are_none(model: CompiledModel) -> None:
    expected = model.generate(PROMPT, 20, **SAMPLED).token_ids
    for filters in ({"top_k": 0}, {"top_p": 1.0}, {"top_k": 24}, {"top_k": 10**9, "top_p": 1}):
        assert model.generate(PROMPT, 20, **SAMPLED, **filters).token_ids == expected
    greedy = model.generate(PROMPT, 20).token_ids
    assert expected != greedy
    assert model.generate(PROMPT, 20, **SAMPLED, top_p=0.0).token_ids == greedy
    assert model.generate(PROMPT, 20, **SAMPLED, top_p=torch.tensor(0.0), top_k=np.int8(0)).token_ids == greedy


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"temperatur": 0.7}, "did you mean 'temperature'"),
        ({"max_tokens": 5}, "did you mean 'max_new_tokens'"),
        ({"penalty_alpha": 0.6}, "penalty_alpha"),
        ({"encoder_repetition_penalty": 1.1}, "encoder_repetition_penalty"),
        ({"remove_invalid_values": True}, "remove_invalid_values"),
        ({"inputs_embeds": torch.ones(1, 3, 4)}, "inputs_embeds"),
        ({"past_key_values": object()}, "past_key_values"),
        ({"assistant_model": object()}, "'assistant_model': compile with strategy='draft_model:PATH'"),
        ({"dola_layers": "high"}, "'dola_layers': give logits_processor=forerun.hooks.Dola"),
        ({"max_time": 1.0}, "max_time"),
        ({"encoder_no_repeat_ngram_size": 2}, "encoder_no_repeat_ngram_size"),
        (
            {"generation_config": GenerationConfig(encoder_repetition_penalty=1.05)},
            "generation_config takes only encoder_repetition_penalty",
        ),
        ({"generation_config": {"temperatur": 1}}, "temperatur"),
        ({"generation_config": 3}, "generation_config must be"),
        ({"generation_config": GenerationConfig}, "generation_config must be"),
    ],
)
def test_anything_else_is_refused_by_name(model: CompiledModel, options: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidOptionError, match=named) as caught:
        model.generate(PROMPT, 6, **options)
    assert isinstance(caught.value, ForerunError)
    assert len(str(caught.value).splitlines()) == 1
    if "it takes" in str(caught.value):
        assert all(name in str(caught.value) for name in known_keywords()), "what there is"


WRONG: dict[str, list[Any]] = {
    "max_new_tokens": ["3", 1.5, True, None, [3], float("nan"), object()],
    "min_new_tokens": ["3", 1.5, True, -1],
    "max_length": ["30", 30.0, False, 0, -1],
    "min_length": ["3", 2.5, True, -1],
    "do_sample": ["yes", 1, [True]],
    "temperature": ["1", True, [1.0], torch.ones(2)],
    "top_k": ["5", 2.0, True, -1, [5]],
    "top_p": ["0.9", True, -0.1, 1.5, float("nan")],
    "seed": ["1", None, 1.0, True, -1, 2**64],
    "eos_token_id": ["x", 1.5, -1, 24, [[1], [2, 3]]],
    "pad_token_id": ["x", 1.5, True],
    "return_logits": ["yes", 1],
    "output_logits": ["yes", 2],
    "output_scores": [1.0],
    "return_dict_in_generate": ["yes"],
    "use_cache": ["yes", 1],
    "allow_nan": ["yes", 1],
    "streamer": [print, 3],
    "stopping_criteria": [3, "x", [3], MaxLengthCriteria],
    "min_p": ["0.1", True, -0.1, 1.5],
    "typical_p": ["0.1", True, 0.0, 1.5],
    "epsilon_cutoff": ["0.1", True, -0.1, 1.0],
    "eta_cutoff": ["0.1", -0.1, 1.0],
    "renormalize_logits": ["yes", 1],
}


@pytest.mark.parametrize("name", WRONG)
def test_values_of_the_wrong_kind_are_refused_by_name(model: CompiledModel, name: str) -> None:
    for value in WRONG[name]:
        with pytest.raises(InvalidOptionError, match=name) as caught:
            model.generate(PROMPT, **({"max_new_tokens": 4, "do_sample": True} | {name: value}))
        assert len(str(caught.value).splitlines()) == 1


def test_numbers_of_any_library(model: CompiledModel) -> None:
    expected = model.generate(PROMPT, 5, top_k=7, top_p=0.5, **SAMPLED).token_ids
    for make in (np.array, torch.tensor):
        options = {"top_k": make(7), "top_p": make(0.5), "do_sample": make(True), "temperature": make(0.9)}
        assert model.generate(PROMPT, make(5), seed=make(5), **options).token_ids == expected


def test_lengths(model: CompiledModel) -> None:
    assert len(model.generate(PROMPT, max_length=10).token_ids) == 7
    assert len(model.generate(PROMPT, max_length=10, max_new_tokens=None).token_ids) == 7
    assert len(model.generate(PROMPT, generation_config=GenerationConfig(max_length=10)).token_ids) == 7
    with pytest.warns(UserWarning, match="max_new_tokens takes precedence"):
        assert len(model.generate(PROMPT, 5, max_length=10).token_ids) == 5
    with pytest.raises(InvalidOptionError, match="max_length=3 leaves no room"):
        model.generate(PROMPT, max_length=3)
    with pytest.raises(TooLongError):
        model.generate(PROMPT, max_length=65)
    with pytest.warns(UserWarning, match="min_new_tokens takes precedence"):
        model.generate(PROMPT, 9, min_new_tokens=2, min_length=9)


def transformers_text(options: dict[str, Any], stop: list[int], minimum: int, count: int) -> list[int]:
    """Greedy decoding after transformers' own processor."""
    oracle, text = Oracle(), list(PROMPT)
    processor = MinNewTokensLengthLogitsProcessor(len(PROMPT), minimum, stop, device="cpu")
    ends = EosTokenCriteria(stop)
    for _ in range(count):
        scores = processor(torch.tensor([text]), torch.from_numpy(oracle.logits(text))[None].clone())
        text.append(int(scores.argmax()))
        if ends(torch.tensor([text]), None)[0]:
            break
    return text[len(PROMPT) :]


@pytest.mark.parametrize("way", [{}, SAMPLED, SAMPLED | {"top_k": 5, "top_p": 0.8}])
def test_a_text_does_not_end_before_min_new_tokens(way: dict[str, Any]) -> None:
    free = plain().generate(PROMPT, 30, **way).token_ids
    for stop in ([free[4]], sorted(set(free[2:9])), list(range(12)), list(range(23))):
        for minimum in (0, 1, 5, 12, 30, 40):
            options = way | {"eos_token_id": stop, "min_new_tokens": minimum, "output_scores": True}
            expected = plain().generate(PROMPT, 30, **options)
            found = expected.token_ids
            assert not set(found[: min(minimum, 30)]) & set(stop)
            assert len(found) == 30 or (found[-1] in stop and not set(found[:-1]) & set(stop))
            drafting = speculative()
            for _ in range(2):
                again = drafting.generate(PROMPT, 30, **options)
                assert again.has_bits_of(expected)
                assert np.array_equal(again.scores, expected.scores)
            length = way | {"eos_token_id": stop, "min_length": minimum + len(PROMPT)}
            assert plain().generate(PROMPT, 30, **length).token_ids == found
            if not way:
                assert found == transformers_text(options, stop, minimum, 30)


def test_scores_are_what_transformers_calls_so(model: CompiledModel) -> None:
    stop = [model.generate(PROMPT, 8).token_ids[2]]
    found = model.generate(
        PROMPT, 8, **SAMPLED, top_k=4, eos_token_id=stop, min_new_tokens=8, output_scores=True, output_logits=True
    )
    for row, (logits, scores) in enumerate(zip(found.logits, found.scores, strict=True)):
        masked = logits.astype(np.float64) / 0.9
        masked[stop] = -np.inf
        kept = masked >= np.sort(masked)[-4]
        assert np.allclose(scores, np.where(kept, masked, -np.inf), rtol=1e-6)
        assert scores[found.token_ids[row]] > -np.inf
    greedy = model.generate(PROMPT, 8, output_scores=True)
    assert np.array_equal(greedy.scores, greedy.logits)
    assert model.generate(PROMPT, 8, output_logits=True).scores is None


def test_sequences_are_prompt_and_text(model: CompiledModel) -> None:
    found = model.generate(torch.tensor([PROMPT]), 6, return_dict_in_generate=True)
    assert found.sequences.dtype == torch.int64
    assert found.sequences.tolist() == [PROMPT + found.token_ids]


class Counts:
    """A criterion that records what it sees, and holds once the text has length `end`."""

    def __init__(self, end: int, answer: Any = bool) -> None:
        self.end, self.answer = end, answer
        self.seen: list[tuple[list[int], Any]] = []

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        assert input_ids.shape[0] == 1
        assert input_ids.dtype == torch.int64
        self.seen.append((input_ids[0].tolist(), scores))
        return self.answer(input_ids.shape[1] >= self.end)


@pytest.mark.parametrize("way", [{}, SAMPLED])
@pytest.mark.parametrize("end", [4, 9, 15, 99])
def test_criteria_see_committed_tokens_one_by_one(way: dict[str, Any], end: int) -> None:
    free = plain().generate(PROMPT, 20, return_logits=True, **way)
    for make in (speculative, plain):
        for answer in (bool, np.bool_, lambda held: torch.tensor([held])):
            first, second = Counts(end, answer), Counts(1000)
            found = make().generate(
                PROMPT, 20, return_logits=True, stopping_criteria=StoppingCriteriaList([first, second]), **way
            )
            count = min(end - 3, 20)
            assert found.token_ids == free.token_ids[:count]
            assert found.logits.tobytes() == free.logits[:count].tobytes()
            expected = [(PROMPT + free.token_ids[: n + 1], None) for n in range(count)]
            assert first.seen == second.seen == expected
            assert found.stats.tokens == count


def test_criteria_of_transformers_and_functions(model: CompiledModel) -> None:
    free = plain().generate(PROMPT, 20).token_ids
    assert model.generate(PROMPT, 20, stopping_criteria=[MaxLengthCriteria(9)]).token_ids == free[:6]
    last = free[5]
    criteria = StoppingCriteriaList([EosTokenCriteria(last)])
    assert model.generate(PROMPT, 20, stopping_criteria=criteria).token_ids == free[: free.index(last) + 1]
    assert model.generate(PROMPT, 20, stopping_criteria=lambda ids, scores: ids.shape[1] == 7).token_ids == free[:4]
    seen: list[Any] = []
    model.generate(PROMPT, 5, output_scores=True, stopping_criteria=[lambda ids, scores: seen.append(scores)])
    assert [len(each) for each in seen] == [1, 2, 3, 4, 5]
    assert all(row.shape == (1, 24) for row in seen[-1])

    def fails(ids: Any, scores: Any) -> bool:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        model.generate(PROMPT, 5, stopping_criteria=[fails])
    assert model.generate(PROMPT, 20).token_ids == free


def test_a_generation_config_is_keywords(model: CompiledModel) -> None:
    expected = model.generate(PROMPT, 12, top_k=6, **SAMPLED).token_ids
    config = GenerationConfig(do_sample=True, temperature=0.9, top_k=6, max_new_tokens=12, pad_token_id=0)
    assert model.generate(PROMPT, generation_config=config, seed=5).token_ids == expected
    assert model.generate(PROMPT, generation_config=config.to_dict(), seed=5).token_ids == expected
    assert model.generate(PROMPT, generation_config=config, seed=5, max_new_tokens=4).token_ids == expected[:4]
    greedy = model.generate(PROMPT, 12).token_ids
    assert model.generate(PROMPT, generation_config=config, do_sample=False).token_ids == greedy
    stop = GenerationConfig(eos_token_id=[greedy[3], 99], max_new_tokens=12)
    with pytest.raises(InvalidOptionError, match="eos_token_id"):
        model.generate(PROMPT, generation_config=stop)
    stop.eos_token_id = greedy[3]
    assert model.generate(PROMPT, generation_config=stop).token_ids == greedy[: greedy.index(greedy[3]) + 1]


def test_an_iterator_streamer(model: CompiledModel, tokenizer: PreTrainedTokenizerFast) -> None:
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=5)
    found = model.generate(PROMPT, 12, streamer=streamer)
    assert "".join(streamer).split() == [chr(97 + token) for token in found.token_ids]


def test_every_field_of_a_generation_config_is_taken_or_refused_by_name(model: CompiledModel) -> None:
    """None of them is ignored silently, and none is missing from the tables."""
    for name in GenerationConfig().to_dict():
        if name in known_keywords() or name in NO_EFFECT or name.startswith("_"):
            continue
        with pytest.raises(InvalidOptionError, match=name):
            model.generate(PROMPT, 4, generation_config={name: 7.5})


def test_attributes_and_repr() -> None:
    model = speculative()
    assert model.max_length == 64
    assert model.target is model.dtype is None
    assert repr(model) == "CompiledModel(vocabulary=24, max_length=64)"
    assert json.dumps(model.max_length) == "64"
