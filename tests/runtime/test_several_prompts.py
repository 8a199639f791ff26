"""What a call with several prompts takes and gives, and texts as streams."""

import asyncio

import numpy as np
import pytest
import torch
from oracle import Oracle
from several import Words, all_free, alone, model_of

from forerun.errors import ForerunError, InvalidOptionError, PromptError, TooLongError
from forerun.runtime.request import Request
from forerun.runtime.sampling import SamplingSettings
from forerun.runtime.spelling import Spelling


def test_lists_give_lists():
    model = model_of(Oracle(), blocks=100)
    expected = [alone(Request(prompt, 6))[0] for prompt in ([1, 2], [3, 4, 5])]
    padded = {
        "left": ([[0, 1, 2], [3, 4, 5]], [[0, 1, 1], [1, 1, 1]]),
        "right": ([[1, 2, 0], [3, 4, 5]], [[1, 1, 0], [1, 1, 1]]),
    }
    for ids, mask in padded.values():
        for to in (np.array, torch.tensor, list):
            found = model.generate(**{"input_ids": to(ids), "attention_mask": to(mask)}, max_new_tokens=6)
            assert [each.token_ids for each in found] == expected
            assert [each.prompt_ids for each in found] == [[1, 2], [3, 4, 5]]
    assert [each.token_ids for each in model.generate(["1 2", "3 4 5"], 6)] == expected
    assert [each.text for each in model.generate(["1 2", "3 4 5"], 6)] == [
        Words().decode(tokens) for tokens in expected
    ]
    assert [each.token_ids for each in model.generate([[1, 2]], 6)] == expected[:1]
    assert model.generate("1 2", 6).token_ids == expected[0]


@pytest.mark.parametrize(
    ("call", "kind", "sentence"),
    [
        ({"input_ids": [[1, 2], [3]], "attention_mask": [[1, 1]]}, PromptError, "1 rows for 2 prompts"),
        ({"input_ids": [[1, 2, 3], [3, 1, 1]], "attention_mask": [[1, 0, 1], [1, 1, 1]]}, PromptError, "run of ones"),
        ({"input_ids": [[1, 2], [3, 4]], "attention_mask": [[1, 1], [0, 0]]}, PromptError, "prompt 1"),
        ({"input_ids": [[1], [2]], "streamer": Words()}, InvalidOptionError, "streamer"),
        ({"input_ids": [1], "num_return_sequences": 2}, InvalidOptionError, "do_sample=True"),
        ({"input_ids": [1], "num_return_sequences": 0}, InvalidOptionError, "num_return_sequences"),
        ({"input_ids": [[1], [2] * 63], "max_new_tokens": 8}, TooLongError, "max_length"),
        ({"input_ids": [[1, 2], [3, 4]], "attention_mask": 1}, PromptError, "attention_mask must"),
        ({"input_ids": [[1, 2], [3, 4]], "attention_mask": object()}, PromptError, "attention_mask must"),
        ({"input_ids": [[1, 2], [3, 4]], "attention_mask": [[[1], [1, 1]], [1, 1]]}, PromptError, "of prompt 0"),
        ({"input_ids": [[[1, 2], [3]], [4]]}, PromptError, "prompt 0"),
        ({"input_ids": [{"input_ids": None, "attention_mask": [1]}]}, PromptError, "prompt 0"),
        ({"input_ids": [[1], [2, 99]]}, PromptError, "prompt 1: token id 99"),
        ({"input_ids": ["1", "x"]}, PromptError, "cannot encode 'x'"),
        ({"input_ids": "1 2", "attention_mask": [1, 1]}, PromptError, "belongs to token ids"),
        ({"input_ids": [[1], [2]], "generation_config": {"streamer": Words()}}, InvalidOptionError, "'streamer'"),
    ],
)
def test_wrong_calls(call: dict, kind: type[Exception], sentence: str):
    model = model_of(Oracle(), blocks=100)
    with pytest.raises(kind, match=sentence):
        model.generate(**call)
    assert model.serving.is_idle


class Encoding:
    """As tokenizers has it."""

    def __init__(self, ids, mask):
        self.ids, self.attention_mask = ids, mask


def test_encodings_are_read_without_their_padding():
    model = model_of(Oracle(), blocks=100)
    expected = [alone(Request(prompt, 6))[0] for prompt in ([1, 2, 3], [4])]
    encodings = [Encoding([1, 2, 3], [1, 1, 1]), Encoding([0, 0, 4], [0, 0, 1])]
    mappings = [
        {"input_ids": torch.tensor([each.ids]), "attention_mask": torch.tensor([each.attention_mask])}
        for each in encodings
    ]
    mixed = [mappings[0], np.array([[4]])]
    for given, text in zip([*encodings, *mappings], expected * 2, strict=True):
        assert model.generate(given, 6).token_ids == text
    for given in (encodings, mappings, mixed, [torch.tensor([[1, 2, 3]]), [4]]):
        assert [each.token_ids for each in model.generate(given, 6)] == expected


def test_a_fork_has_the_scores_of_its_own_request():
    model = model_of(Oracle(), blocks=100)
    options = {"min_new_tokens": 10, "eos_token_id": [3, 5], "output_scores": True}
    with model.sessions([[1]], max_new_tokens=30, **options) as sessions:
        session = next(each for each in sessions if len(each.token_ids) >= 6)
        seen = list(session.token_ids)
        fork = session.fork([5], max_new_tokens=12)
        list(sessions)
    options["min_new_tokens"] = 9 - len(seen)
    whole = model.generate([1, *seen, 5], 12, **options)
    assert fork.token_ids == whole.token_ids
    assert np.array_equal(fork.generation().scores, whole.scores)


@pytest.mark.parametrize(
    "options",
    [
        {"tokens": 5}, {"tokens": None}, {"tokens": [0.5]}, {"tokens": [99]}, {"max_new_tokens": "3"},
        {"identifier": -1}, {"identifier": 2**64}, {"seed": -1}, {"max_new_tokens": 1000},
    ],
)  # fmt: skip
def test_wrong_forks(options: dict):
    model = model_of(Oracle(), blocks=100)
    with model.sessions([[1]], max_new_tokens=30) as sessions:
        session = next(sessions)
        with pytest.raises(ForerunError):
            session.fork(**options)
    assert all_free(model)


def test_a_criterion_that_fails_ends_its_text():
    model = model_of(Oracle(), blocks=100)
    calls: list[int] = []

    def once(input_ids, scores):
        calls.append(1)
        if len(calls) == 3:
            raise ValueError("once")
        return False

    stream = model.stream([1], max_new_tokens=10, stopping_criteria=once)
    with pytest.raises(ValueError, match="once"):
        list(stream)
    assert list(stream) == []
    calls.clear()
    with model.sessions([[1], [2]], max_new_tokens=20, stopping_criteria=once) as sessions:
        list(sessions)
    assert [type(each.error) for each in sessions.all].count(ValueError) == 1
    assert all_free(model)
    for call in (model.stream, model.sessions):
        with pytest.raises(InvalidOptionError, match="streamer"):
            call([1], streamer=Words())


def test_several_texts_of_a_prompt():
    model = model_of(Oracle(), blocks=100)
    options = {"do_sample": True, "temperature": 2.0, "seed": 5}
    found = model.generate([[1, 2], [3]], 10, num_return_sequences=3, **options)
    assert len(found) == 6
    for number, text in enumerate(found):
        request = Request([[1, 2], [3]][number // 3], 10, SamplingSettings(**options), identifier=number % 3)
        assert text.token_ids == alone(request)[0]
    assert len({tuple(text.token_ids) for text in found[:3]}) == 3


def test_streams():
    model = model_of(Oracle(), blocks=100)
    pieces = list(model.stream([1, 2], max_new_tokens=20))
    tokens = alone(Request([1, 2], 20))[0]
    assert [token for piece in pieces for token in piece.token_ids] == tokens
    assert "".join(piece.text for piece in pieces) == Words().decode(tokens)
    assert len(pieces) > 1
    with pytest.raises(InvalidOptionError, match="one text"):
        model.stream([[1], [2]], max_new_tokens=5)


class Bytes:
    """A tokenizer whose tokens are bytes of UTF-8."""

    def decode(self, token_ids, skip_special_tokens=False, **options):
        return bytes(token_ids).decode("utf-8", errors="replace")


def test_pieces_have_whole_characters():
    text = "naïve 日本 🌍!"
    spelling = Spelling(Bytes())
    coded = text.encode()
    pieces = [spelling.add([byte], last=number == len(coded) - 1) for number, byte in enumerate(coded)]
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    assert Spelling(Bytes()).add(list(coded[:-7]), last=True).endswith("\ufffd")


def test_async_forms():
    model = model_of(Oracle(), blocks=200)

    async def main():
        texts = await asyncio.gather(*(model.generate_async([number], max_new_tokens=20) for number in range(8)))
        several = await model.generate_async([[1], [2]], max_new_tokens=5)
        pieces = [piece async for piece in model.stream_async([3], max_new_tokens=20)]
        cancelled = asyncio.create_task(model.generate_async([5] * 3, max_new_tokens=60))
        await asyncio.sleep(0.001)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        return texts, several, pieces

    texts, several, pieces = asyncio.run(main())
    assert [text.token_ids for text in texts] == [alone(Request([number], 20))[0] for number in range(8)]
    assert [text.token_ids for text in several] == [alone(Request([number], 5))[0] for number in (1, 2)]
    assert [token for piece in pieces for token in piece.token_ids] == alone(Request([3], 20))[0]
    assert all_free(model)
