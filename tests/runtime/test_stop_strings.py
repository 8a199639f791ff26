"""Stop strings are found wherever token borders are, and cut out exactly; texts say why they ended."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import Oracle
from test_keywords import plain, speculative
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, StopStringCriteria

from forerun.errors import InvalidOptionError
from forerun.runtime.spelling import StoppedText, held_back

PIECES = [b"a", b"b", b"ab", b"ba", b"aab", b" ", b"<", b">", b"</", b"\xc3", b"\xa9", b"\xe2\x82", b"\xac", b"abc"]
PIECES += [b"x%d" % number for number in range(Oracle().vocabulary - len(PIECES))]


class Pieces:
    """A tokenizer whose tokens are a few bytes each, some of them parts of a character."""

    def decode(self, token_ids, skip_special_tokens=False, **options):
        return b"".join(PIECES[token] for token in token_ids).decode("utf-8", errors="replace")

    def encode(self, text):
        return [PIECES.index(bytes([each])) for each in text.encode()]


def expected(tokens: list[int], stops: list[str]) -> tuple[str, int, str | None]:
    """The text, how many tokens it takes and the stop string, by looking at each character of the whole text."""
    text, whole = "", Pieces().decode(tokens)
    for each in whole:
        text += each
        if ended := sorted((stop for stop in stops if text.endswith(stop)), key=len):
            count = next(n for n in range(1, len(tokens) + 1) if Pieces().decode(tokens[:n]).startswith(text))
            return text[: -len(ended[-1])], count, ended[-1]
    return whole, len(tokens), None


stops = st.lists(st.sampled_from(["ab", "b", "aab", "é", "a<", "€", "bab", "x1", "<>", "zz", "aaba", "ba"]), min_size=1)


@settings(max_examples=200, deadline=None)
@given(tokens=st.lists(st.integers(0, 13), min_size=1, max_size=40), stops=stops)
def test_found_across_token_borders(tokens: list[int], stops: list[str]):
    text, count, found = expected(tokens, stops)
    stopped, news = StoppedText(Pieces(), stops), ""
    taken = 0
    for token in tokens:
        taken += 1
        ended = stopped.add(token)
        news += stopped.news()
        assert text.startswith(news)
        if ended:
            break
    stopped.finish()
    news += stopped.news()
    assert (news, taken, stopped.found) == (text, count, found)
    assert stopped.text == text


@pytest.mark.parametrize(
    ("text", "strings", "held"),
    [("xx", ["xxx"], 2), ("xx", ["xx"], 1), ("ab<to", ["<tool>"], 3), ("abc", ["x"], 0), ("", ["ab"], 0)],
)
def test_held_back(text: str, strings: list[str], held: int):
    assert held_back(text, strings) == held


@pytest.mark.parametrize("way", [{}, {"do_sample": True, "temperature": 1.5, "seed": 3}])
def test_texts_of_all_strategies(way: dict):
    for seed in range(30):
        prompt = np.random.default_rng(seed).integers(0, 12, 4).tolist()
        options = {"max_new_tokens": 24, **way}
        free = plain(tokenizer=Pieces()).generate(prompt, **options)
        assert free.finish_reason == "length"
        for stop in (["ab", "é"], "a", ["b", "x1", "x3"]):
            text, count, found = expected(free.token_ids, [stop] if isinstance(stop, str) else stop)
            for model in (plain(tokenizer=Pieces()), speculative(tokenizer=Pieces())):
                result = model.generate(prompt, stop=stop, return_logits=True, **options)
                assert (result.text, len(result.token_ids)) == (text, count)
                assert result.finish_reason == ("stop" if found else "length")
                assert result.logits is not None
                assert len(result.logits) == count
                pieces = list(model.stream(prompt, stop=stop, **options))
                assert "".join(piece.text or "" for piece in pieces) == text
                assert [token for piece in pieces for token in piece.token_ids] == result.token_ids
                assert [piece.finish_reason for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
                assert pieces[-1].finish_reason == result.finish_reason


def test_finish_reasons():
    model = speculative(tokenizer=Pieces())
    free = model.generate([1, 2, 3], 12)
    assert model.generate([1, 2, 3], 12, eos_token_id=free.token_ids[-1]).finish_reason == "stop"
    assert model.generate([1, 2, 3], 12, stopping_criteria=lambda ids, _: ids.shape[1] == 7).finish_reason == "stop"
    sessions = model.sessions([1, 2, 3], max_new_tokens=12)
    session = next(sessions)
    session.cancel()
    assert session.generation().finish_reason is None


def test_stop_strings_are_those_of_transformers():
    words = ["a", "b", "c", "d", "e", "f", "ab", "ba", "aab", "ca", "<"]
    words += [f"x{number}" for number in range(Oracle().vocabulary - len(words))]
    inner = Tokenizer(models.WordLevel({word: token for token, word in enumerate(words)}, unk_token="a"))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.Split("", "isolated"), decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner)
    strings = ["aba", "bc", "x1"]
    for seed in range(20):
        prompt = np.random.default_rng(seed).integers(0, 12, 4).tolist()
        free, text = plain().generate(prompt, 24).token_ids, list(prompt)
        criterion = StopStringCriteria(tokenizer, strings)
        for token in free:
            text.append(token)
            if criterion(torch.tensor([text]), None)[0]:
                break
        for model in (plain(tokenizer=tokenizer), speculative(tokenizer=tokenizer)):
            found = model.generate(prompt, 24, stop_strings=strings)
            assert found.token_ids == text[len(prompt) :]
            assert found.text == tokenizer.decode(found.token_ids, skip_special_tokens=True)
        assert (
            speculative().generate(prompt, 24, stop_strings=strings, tokenizer=tokenizer).token_ids == found.token_ids
        )


def test_refusals():
    model = speculative(tokenizer=Pieces())
    for wrong in ("", ["a", ""], 3, [3], {"a": 1}):
        with pytest.raises(InvalidOptionError, match="stop must be a text or a list of texts"):
            model.generate([1], 3, stop=wrong)
    with pytest.raises(InvalidOptionError, match="has no tokenizer, so it cannot find stop strings"):
        speculative().generate([1], 3, stop="a")
    with pytest.raises(InvalidOptionError, match="stop_strings need a tokenizer of transformers"):
        model.generate([1], 3, stop_strings="a")
