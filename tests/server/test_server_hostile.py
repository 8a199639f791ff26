"""Requests that would harm others: what is expensive, what never ends, and what breaks in the middle."""

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forerun.runtime.spelling import held_back
from forerun.server.limits import Limits
from forerun.server.refusals import RefusedError
from forerun.server.tool_calls import parsed
from tests.server.served import NAME, Served, compiled, running, service_of
from tests.server.test_server_errors import CHAT, TURNS, told
from tests.server.test_server_life import metrics


class PanicException(BaseException):
    """What PyO3 raises for a panic in Rust: no `Exception`."""


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[Any]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield before
    finally:
        setattr(owner, name, before)


def reaches(value: Any, expected: Any) -> bool:
    until = time.monotonic() + 10
    while value() != expected and time.monotonic() < until:
        time.sleep(0.01)
    return value() == expected


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/completions", CHAT])
def test_logprobs_end_before_a_stop_text(served: Served, path: str, stream: bool):
    """Tokens that begin in a stop text are not told, not even before the text is known to be one."""
    chat = path == CHAT
    prompt, text = "tell", "one two three four"
    ids = served.model.tokenizer.encode
    before = (
        served.model.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
        )
        if chat
        else prompt
    )
    served.model.executable.write(ids(before, add_special_tokens=False), ids(text, add_special_tokens=False))
    body = {"stop": ["nothing", " three"], "max_tokens": 40, "temperature": 0, "stream": stream}
    body |= {"messages": [{"role": "user", "content": prompt}], "logprobs": True} if chat else {"prompt": prompt}
    answer = served.post(path, **({"logprobs": 1} | body))
    parts = [each[6:] for each in answer.text.split("\n\n") if each.startswith("data: {")] if stream else [answer.text]
    found = [json.loads(each) for each in parts]
    tokens, texts = "", ""
    for each in found:
        [choice] = each["choices"]
        logprobs = choice["logprobs"] or {"content": [], "tokens": []}
        tokens += "".join(one["token"] for one in logprobs["content"]) if chat else "".join(logprobs["tokens"])
        part = choice["delta" if stream else "message"].get("content") or "" if chat else choice["text"]
        texts += part
        assert texts.startswith(tokens) or tokens == texts, "no token is told before its text"
    assert texts == tokens == "one two"


@given(text=st.text("ab", max_size=30), strings=st.lists(st.text("ab", min_size=1, max_size=12), max_size=4))
def test_what_is_held_back(text: str, strings: list[str]):
    """The longest end of the text that begins a string and is not all of it."""
    ends = [n for n in range(1, len(text) + 1) if any(s != text[-n:] and s.startswith(text[-n:]) for s in strings)]
    assert held_back(text, strings) == max(ends, default=0)


def test_a_long_stop_text_takes_no_time():
    began = time.process_time()
    held_back("the cat sat on the mat. " * 10_000, ["x" * 100_000] * 16)
    assert time.process_time() - began < 0.5


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": [0] * 500_000}, "messages"),
        ({"messages": [{"role": "user", "content": [0] * 500_000}]}, "messages[0].content"),
        ({"messages": [{"role": "assistant", "tool_calls": [0] * 500_000}]}, "messages[0].tool_calls"),
        ({"tools": [0] * 500_000}, "tools"),
        ({"logit_bias": {str(each): "x" for each in range(200_000)}}, "logit_bias"),
        ({"stop": ["a" * 1001]}, "stop"),
        ({"stop": "a" * 1001}, "stop"),
    ],
)
def test_many_members_are_not_checked_one_by_one(served: Served, fields: dict[str, Any], param: str):
    error = told(served.post(CHAT, **({"messages": TURNS} | fields)), 400)
    assert error["param"] == param


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "^((a{1000}){1000}){10}$"},
        {"const": "a" * 120_001},
        {"const": "a" * 20_000},  # more than the model takes
        {"type": "object", "x-guidance": {"lenient": True}, "not": {}},
        {"type": "string", "pattern": "(" * 2000 + ")" * 2000},
        {"allOf": [{"anyOf": [{"properties": {str(i): {"const": j}}} for j in (0, 1)]} for i in range(20)]},
    ],
)
def test_schemas_that_are_too_much(served: Served, schema: dict[str, Any]):
    """They are refused before they take part in steps, where others would wait for them."""
    steps = len(served.model.executable.steps)
    form = {"type": "json_schema", "json_schema": {"schema": schema}}
    assert told(served.post(prompt="a", response_format=form), 400)["param"].startswith("response_format")
    assert len(served.model.executable.steps) == steps


def test_schemas_that_are_deep(served: Served):
    schema: dict[str, Any] = {}
    for _ in range(80):
        schema = {"properties": {"a": schema}}
    form = {"type": "json_schema", "json_schema": {"schema": schema}}
    told(served.post(prompt="a", response_format=form), 400)


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999", "9" * 4000, "9" * 5000, '"\\ud800"'])
@pytest.mark.parametrize("where", ["minimum", "enum"])
def test_schemas_with_strange_numbers(served: Served, number: str, where: str):
    value = f"[{number}]" if where == "enum" else number
    form = f'{{"type": "json_schema", "json_schema": {{"schema": {{"type": "number", "{where}": {value}}}}}}}'
    body = f'{{"model": "{NAME}", "prompt": "a", "max_tokens": 3, "response_format": {form}}}'
    answer = httpx.post(f"{served.url}/v1/completions", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (200, 400), answer.text
    if answer.status_code == 400:
        told(answer, 400)


def test_too_many_texts_are_refused_before_they_are_read(served: Served):
    def encode(*_: Any, **__: Any) -> list[int]:
        raise AssertionError("it is not tokenized")

    with (
        running(served.model, Limits(queue=4, choices=100)) as small,
        replaced(small.service.tokenizer, "encode", encode),
    ):
        assert told(small.post(prompt="a", n=5), 429)["code"] == "rate_limit_exceeded"
        assert told(small.post(prompt=["a"] * 101), 400)["param"] == "n"


def test_a_client_that_goes_away_while_its_prompt_is_read_frees_its_place(served: Served):
    """And the work that waits behind it is never done."""
    begun, go_on, calls = threading.Event(), threading.Event(), list[str]()

    def encode(text: str, **options: Any) -> list[int]:
        calls.append(text)
        begun.set()
        assert go_on.wait(20)
        return before(text, **options)

    with replaced(served.model.tokenizer, "encode", served.model.tokenizer.encode) as before:
        served.model.tokenizer.encode = encode
        try:
            with ThreadPoolExecutor(2) as pool:
                for text in ("first", "second"):
                    left = pool.submit(
                        httpx.post, f"{served.url}/v1/completions", json={"model": NAME, "prompt": text}, timeout=0.5
                    )
                    assert begun.wait(10)
                    with pytest.raises(httpx.ReadTimeout):
                        left.result()
            assert reaches(lambda: served.service.admission.texts, 0)
        finally:
            go_on.set()
    assert served.post(prompt="a", max_tokens=1).status_code == 200
    assert calls == ["first"]


def test_a_grammar_that_takes_long_keeps_nobody_waiting(served: Served):
    begun, go_on = threading.Event(), threading.Event()
    asked = served.model.asked

    def slow(*given: Any, **keywords: Any) -> Any:
        if "grammar" in keywords:
            begun.set()
            assert go_on.wait(20)
        return asked(*given, **keywords)

    form = {"type": "json_object"}
    with replaced(served.model, "asked", slow), ThreadPoolExecutor(1) as pool:
        try:
            waiting = pool.submit(served.post, prompt="a", max_tokens=3, response_format=form)
            assert begun.wait(10)
            assert served.post(prompt="b", max_tokens=3).status_code == 200
            assert not waiting.done()
        finally:
            go_on.set()
        assert waiting.result().status_code == 200


def test_a_long_prompt_keeps_nobody_waiting(served: Served):
    begun, go_on = threading.Event(), threading.Event()
    encode = served.model.tokenizer.encode

    def slow(text: str, **options: Any) -> list[int]:
        if len(text) > 1000:
            begun.set()
            assert go_on.wait(20)
        return encode(text, **options)

    with replaced(served.model.tokenizer, "encode", slow), ThreadPoolExecutor(1) as pool:
        try:
            waiting = pool.submit(served.post, prompt="a" * 100_000)
            assert begun.wait(10)
            assert served.post(prompt="b", max_tokens=3).status_code == 200
            assert not waiting.done()
        finally:
            go_on.set()
        assert told(waiting.result(), 400)["code"] == "context_length_exceeded"


@pytest.mark.parametrize("prompt", [[2**63], [2**64], [-1], [[1], [300]]])
def test_tokens_that_there_are_not(served: Served, prompt: list):
    assert told(served.post(prompt=prompt), 400)["param"] == "prompt"


@pytest.mark.parametrize("error", [PanicException, ZeroDivisionError])
def test_a_broken_tokenizer_harms_one_request(error: type[BaseException]):
    model = compiled()
    with running(model) as ill:
        failures = [1]

        def broken(name: str) -> Any:
            work = getattr(model.tokenizer, name)

            def once(*given: Any, **options: Any) -> Any:
                if failures and threading.current_thread().name.startswith("forerun"):
                    failures.pop()
                    raise error("secret insides")
                return work(*given, **options)

            return once

        for name, status in (("decode", 500), ("encode", 400 if issubclass(error, Exception) else 500)):
            failures[:] = [1]
            with replaced(model.tokenizer, name, broken(name)):
                assert told(ill.post(prompt="abc", max_tokens=4), status)["code"] != "x"
                assert ill.post(prompt="abc", max_tokens=4).status_code == 200
        failures[:] = [1]
        with replaced(model.tokenizer, "decode", broken("decode")):
            answer = ill.post(prompt="abc", max_tokens=4, stream=True)
            assert told(answer, 500)["code"] == "internal_error"
        assert metrics(ill.url)["forerun_requests_total", "/v1/completions", "500"] >= 2
        assert ("forerun_requests_total", "/v1/completions", "499") not in metrics(ill.url)
        assert ill.idle()


def test_a_step_that_panics_does_not_end_decoding():
    model = compiled()
    with running(model) as ill:
        run, failures = model.executable.run, [1]

        def panics(*given: Any, **options: Any) -> Any:
            if failures:
                failures.pop()
                raise PanicException("secret insides")
            return run(*given, **options)

        with replaced(model.executable, "run", panics):
            answer = ill.post(prompt="abc", max_tokens=4)
            assert told(answer, 500)["code"] == "internal_error"
            assert "secret" not in answer.text
            assert ill.post(prompt="abc", max_tokens=4).status_code == 200
        assert ill.idle()


@pytest.mark.parametrize("stream", [False, True])
def test_half_a_surrogate_pair_in_a_tool_call_stays_text(stream: bool):
    for inside in (
        r'{"name": "f", "arguments": {"a": "\ud800"}}',
        r'{"name": "\udc00"}',
        r'{"name":"f","arguments":"\ud800"}',
    ):
        assert parsed(inside) is None
    assert parsed(r'{"name": "f", "arguments": {"a": "\ud83d\ude00"}}') is not None
    model = compiled()
    with running(model) as served:
        tools = [{"type": "function", "function": {"name": "f"}}]
        tokenizer = model.tokenizer
        prompt = tokenizer.apply_chat_template(TURNS, tools=tools, add_generation_prompt=True, tokenize=False)
        text = r'<tool_call>{"name": "f", "arguments": {"a": "\ud800"}}</tool_call>'
        ids = tokenizer.encode(text, add_special_tokens=False)
        model.executable.write(tokenizer.encode(prompt, add_special_tokens=False), ids)
        answer = served.post(CHAT, messages=TURNS, tools=tools, temperature=0, max_tokens=len(ids), stream=stream)
        assert answer.status_code == 200
        assert "finish_reason" in answer.text
        if not stream:
            assert answer.json()["choices"][0]["message"]["content"] == text


@pytest.mark.parametrize(
    "defaults",
    [
        {"num_beams": 4},
        {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5, "num_return_sequences": 2},
        {"do_sample": True, "num_return_sequences": 3},
    ],
)
def test_defaults_that_search_or_give_several_texts_do_not_apply(defaults: dict[str, Any]):
    model = compiled()
    with running(model) as served:
        given = {"prompt": "abc", "max_tokens": 9, "seed": 4}
        plain = [served.post(**given, temperature=heat).json()["choices"] for heat in (0, 1)]
        model.defaults = defaults
        assert [served.post(**given, temperature=heat).json()["choices"] for heat in (0, 1)] == plain


def test_a_bias_outside_the_vocabulary(served: Served):
    assert told(served.post(prompt="a", logit_bias={"99999": 1}), 400)


def test_nothing_begins_after_the_end():
    async def tried() -> None:
        service = service_of(compiled())
        service.decoding.start()
        asked = service.model.asked([1, 2], max_new_tokens=2)
        held = threading.Event()
        running_ = asyncio.ensure_future(service.beside(held.wait, False))
        await asyncio.sleep(0.05)
        waiting = asyncio.ensure_future(service.beside(lambda: 1, False))
        await asyncio.sleep(0)
        service.close()
        held.set()
        assert await running_
        for each in (waiting, service.beside(lambda: 1, False), service.beside(lambda: 1, True)):
            with pytest.raises(RefusedError, match="shutting down"):
                await each
        with pytest.raises(RefusedError, match="shutting down"):
            service.decoding.begin(asked)

    asyncio.run(tried())
