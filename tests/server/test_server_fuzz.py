"""Whatever a body holds, the answer is one of the expected ones, in OpenAI's shape."""

import json
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.server.served import NAME, Served

FIELDS = (
    "model", "prompt", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "min_p", "n",
    "stream", "stream_options", "stop", "seed", "presence_penalty", "frequency_penalty", "logit_bias", "logprobs",
    "top_logprobs", "tools", "tool_choice", "response_format", "watch", "user", "echo", "suffix", "best_of",
    "functions", "parallel_tool_calls", "audio", "metadata",
)  # fmt: skip
WORDS = (
    "role", "content", "type", "function", "name", "parameters", "text", "user", "assistant", "tool", "system",
    "arguments", "tool_calls", "id", "include_usage", "json_object", "json_schema", "schema", "strict",
)  # fmt: skip
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 40),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(WORDS),
)
anything = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(WORDS) | st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=8,
)
likely: dict[str, st.SearchStrategy[Any]] = {
    "prompt": st.text(max_size=20)
    | st.lists(st.integers(-1, 300), max_size=6)
    | st.lists(st.text(max_size=4), max_size=4),
    "messages": st.lists(
        st.fixed_dictionaries(
            {"role": st.sampled_from(("user", "system", "assistant", "tool", "developer"))},
            optional={"content": st.text(max_size=8) | anything, "tool_calls": anything, "name": st.text(max_size=4)},
        ),
        max_size=3,
    ),
    "max_tokens": st.integers(0, 8),
    "temperature": st.floats(0, 2),
    "top_p": st.floats(0, 1),
    "top_k": st.integers(0, 300),
    "n": st.integers(0, 3),
    "stream": st.booleans(),
    "stop": st.text(max_size=2) | st.lists(st.text(max_size=2), max_size=3),
    "seed": st.integers(-(2**65), 2**65),
    "logit_bias": st.dictionaries(st.integers(-1, 300).map(str), st.floats(-100, 100), max_size=3),
    "presence_penalty": st.floats(-2, 2),
    "logprobs": st.booleans() | st.integers(0, 5),
    "top_logprobs": st.integers(0, 20),
    "tools": st.lists(
        st.fixed_dictionaries({"type": st.just("function"), "function": st.fixed_dictionaries({"name": st.just("f")})})
    ),
    "watch": st.booleans(),
    "response_format": st.fixed_dictionaries(
        {"type": st.sampled_from(("text", "json_object", "json_schema"))},
        optional={"json_schema": st.fixed_dictionaries({"schema": st.dictionaries(st.text(max_size=6), anything)})},
    ),
}
EXPECTED = {200, 400, 404, 413, 415}


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    chosen = draw(st.sets(st.sampled_from(FIELDS), max_size=8))
    body: dict[str, Any] = {"model": NAME, "max_tokens": 4}
    for name in ("prompt", "messages"):
        if draw(st.integers(0, 4)):
            body[name] = draw(likely[name])
    for name in chosen:
        body[name] = draw(likely.get(name, anything) if draw(st.integers(0, 3)) else anything)
    text = json.dumps(body).encode()
    if not draw(st.integers(0, 15)):  # damaged
        at, count = draw(st.integers(0, len(text))), draw(st.integers(1, 5))
        text = text[:at] + draw(st.binary(max_size=4)) + text[at + count :]
    return text


def check(served: Served, path: str, body: bytes) -> None:
    answer = httpx.post(served.url + path, content=body, headers={"Content-Type": "application/json"}, timeout=60)
    assert answer.status_code in EXPECTED, (body, answer.text)
    assert "Traceback" not in answer.text
    assert ".py" not in answer.text
    if answer.status_code != 200:
        error = answer.json()["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        assert error["message"]
    elif answer.headers["content-type"].startswith("text/event-stream"):
        told = answer.text.removesuffix("\n\n").split("\n\n")
        assert told[-1] == "data: [DONE]", (body, told[-1])
        for each in told[:-1]:
            json.loads(each.removeprefix("data: "), parse_constant=pytest.fail)
    else:
        json.loads(answer.text, parse_constant=pytest.fail)


paths = st.sampled_from(("/v1/completions", "/v1/chat/completions"))
quietly = settings(deadline=None, suppress_health_check=list(HealthCheck))


@settings(quietly, max_examples=100)
@given(path=paths, body=bodies())
def test_random_bodies(served: Served, path: str, body: bytes):
    check(served, path, body)


@pytest.mark.slow
@settings(quietly, max_examples=2000)
@given(path=paths, body=bodies() | st.binary(max_size=60))
def test_many_random_bodies(served: Served, path: str, body: bytes):
    check(served, path, body)
