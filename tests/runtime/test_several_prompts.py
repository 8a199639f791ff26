"""What a call with several prompts takes and gives, and texts as streams."""

import asyncio

import numpy as np
import pytest
import torch
from oracle import Oracle
from several import Words, all_free, alone, model_of

from forerun.errors import InvalidOptionError, PromptError, TooLongError
from forerun.runtime.request import Request
from forerun.runtime.sampling import SamplingSettings
from forerun.runtime.texts import Spelling


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
    ],
)
def test_wrong_calls(call: dict, kind: type[Exception], sentence: str):
    model = model_of(Oracle(), blocks=100)
    with pytest.raises(kind, match=sentence):
        model.generate(**call)
    assert model.serving.is_idle


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
