"""Parts of the server by themselves: bytes of tokens, log-probabilities, hosts, admission."""

import gc
import math
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tokenizers import Tokenizer, decoders, models

from forerun.artifacts.tokenizer import BundleTokenizer
from forerun.runtime.hooks.grammars import Grammars, JsonSchema
from forerun.runtime.session import Session
from forerun.server.admission import Admission
from forerun.server.answers import CompletionChoice
from forerun.server.decoding import Job, Text
from forerun.server.guard import host_of
from forerun.server.limits import Limits
from forerun.server.logprobs import LEAST, TokenLogprobs, token_logprobs
from forerun.server.pieces import Piece
from forerun.server.refusals import RefusedError
from forerun.server.token_text import token_bytes
from tests.server.served import END, LETTERS, SPECIAL, VOCABULARY, Served, tokenizer

finite = st.floats(-50, 50, width=32)


@given(logits=arrays(np.float32, st.integers(1, 40), elements=finite), top=st.integers(0, 20), data=st.data())
def test_logprobs_are_torchs(logits: np.ndarray, top: int, data: st.DataObject):
    token = data.draw(st.integers(0, len(logits) - 1))
    found = token_logprobs(logits, token, top)
    expected = torch.log_softmax(torch.from_numpy(logits.astype(np.float64)), 0).numpy()
    assert found.logprob == pytest.approx(expected[token], abs=1e-9)
    order = sorted(range(len(logits)), key=lambda each: (-logits[each], each))[:top]
    assert [each for each, _ in found.top] == order
    assert [logprob for _, logprob in found.top] == pytest.approx([expected[each] for each in order], abs=1e-9)


@pytest.mark.parametrize(
    ("logits", "logprob", "top"),
    [
        ([0.0, -math.inf], LEAST, [(0, 0.0), (1, LEAST)]),
        ([math.inf, 1.0], LEAST, [(0, 0.0), (1, LEAST)]),
        ([math.nan, 1.0], 0.0, [(1, 0.0), (0, LEAST)]),
        ([-math.inf, -math.inf], math.log(0.5), [(0, math.log(0.5)), (1, math.log(0.5))]),
    ],
)
def test_logprobs_have_no_infinity(logits: list[float], logprob: float, top: list):
    found = token_logprobs(np.array(logits, np.float32), 1, 2)
    assert found.logprob == pytest.approx(logprob)
    assert [each for each, _ in found.top] == [each for each, _ in top]
    assert [each for _, each in found.top] == pytest.approx([each for _, each in top])


def test_bytes_of_tokens_that_are_parts_of_characters():
    made = tokenizer()
    bundle = BundleTokenizer(made.backend_tokenizer, None, {})
    text = "aé€\n 😀"
    for each in (made, bundle):
        ids = each.encode(text, add_special_tokens=False)
        assert b"".join(token_bytes(each, token) for token in ids) == text.encode()
        assert token_bytes(each, len(LETTERS)) == SPECIAL[0].encode()


def test_offsets_count_characters():
    made, text = tokenizer(), "aé€\n 😀b"
    choice = CompletionChoice(0, made, 0)
    places = [TokenLogprobs(token, 0.0, ()) for token in made.encode(text, add_special_tokens=False)]
    for part in (places[:3], places[3:]):
        choice.chunks(Piece("", len(part), part))
    told = choice.whole()["logprobs"]
    begins = [sum(len(each.encode()) for each in text[:at]) for at in range(len(text))]
    assert [told["text_offset"][each] for each in begins] == list(range(len(text)))
    assert told["tokens"][0] == "a"
    assert told["tokens"][1] == "bytes:\\xc3"


def test_a_bundles_tokenizer_takes_grammars():
    pytest.importorskip("llguidance")
    bundle = BundleTokenizer(tokenizer().backend_tokenizer, None, {})
    hook = Grammars(bundle, VOCABULARY, [END]).hook(JsonSchema({"const": True}), frozenset((END,)))
    assert bundle.decode(hook.forced(hook.begin(()))) == "true"


def test_bytes_of_sentencepieces():
    pieces = ["▁the", "re", "<0xE2>", "<0x82>", "<0xAC>", "▁"]
    made = Tokenizer(models.WordLevel({piece: number for number, piece in enumerate(pieces)}, unk_token="re"))
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    assert [token_bytes(made, token) for token in range(6)] == [b" the", b"re", b"\xe2", b"\x82", b"\xac", b" "]


@pytest.mark.parametrize(
    ("header", "host"),
    [("localhost", "localhost"), ("LocalHost:80", "localhost"), ("[::1]:8000", "::1"), ("[::1]", "::1"), ("", "")],
)
def test_hosts(header: str, host: str):
    assert host_of(header) == host


def test_admission():
    admission = Admission(Limits(queue=3, choices=2))
    with admission.reading(), admission.admitted(2):
        assert admission.texts == 2
        with admission.reading():
            with pytest.raises(RefusedError, match="no room for 2 texts") as full, admission.admitted(2):
                pass
            assert full.value.status == 429
            with admission.admitted(1), pytest.raises(RefusedError, match="3 texts are running"):
                admission.check()
        admission.draining = True
        with pytest.raises(RefusedError, match="shutting down"):
            admission.check()
    assert admission.texts == 0


def test_nothing_of_a_request_is_kept(served: Served):
    for number in range(20):
        served.post(prompt="abc", max_tokens=5, n=2, logprobs=2, seed=number)
    assert served.idle()
    until = time.monotonic() + 5
    while held() and time.monotonic() < until:  # by the last connection, until it is closed
        time.sleep(0.05)
    assert held() == []


def held() -> list[object]:
    gc.collect()
    return [each for each in gc.get_objects() if type(each) in {Session, Job, Text}]
