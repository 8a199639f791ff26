"""Bad requests get OpenAI's shape of errors, the right status, and the name of the field."""

import json
from typing import Any

import httpx
import openai
import pytest

from forerun.server.limits import Limits
from tests.server.served import NAME, TEMPLATE, Served, compiled, running, tokenizer

CHAT = "/v1/chat/completions"
TURNS = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "f"}}


def told(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()
    assert error.keys() == {"error"}
    assert error["error"].keys() == {"message", "type", "param", "code"}
    assert error["error"]["message"]
    assert "Traceback" not in answer.text
    return error["error"]


COMPLETIONS = [
    ({"temperature": 2.5}, "temperature"),
    ({"temperature": "1"}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"top_p": -0.1}, "top_p"),
    ({"top_k": -1}, "top_k"),
    ({"n": 0}, "n"),
    ({"n": 17}, "n"),
    ({"prompt": ["a"] * 9, "n": 2}, "n"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 512}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"stop": ""}, "stop"),
    ({"stop": ["a"] * 17}, "stop"),
    ({"stop": [1]}, "stop"),
    ({"seed": 2**64}, "seed"),
    ({"seed": 0.5}, "seed"),
    ({"presence_penalty": 3}, "presence_penalty"),
    ({"logit_bias": {"a": 1}}, "logit_bias"),
    ({"logit_bias": {"1": 101}}, "logit_bias.1"),
    ({"logprobs": 6}, "logprobs"),
    ({"logprobs": True}, "logprobs"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
    ({"prompt": None}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": ["a", 1]}, "prompt"),
    ({"prompt": [1, True]}, "prompt"),
    ({"prompt": [[]]}, "prompt"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": "a" * 600}, "prompt"),
    ({"echo": True}, "echo"),
    ({"best_of": 3}, "best_of"),
    ({"suffix": "x"}, "suffix"),
    ({"nonsense": 1}, "nonsense"),
    ({"model": None}, "model"),
    ({"response_format": {"type": "nonsense"}}, "response_format"),
    ({"response_format": {}}, "response_format"),
    ({"response_format": {"type": "json_object", "more": 1}}, "response_format.more"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": 1}}}, "response_format.json_schema.schema"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "nothing"}}}}, "response_format"),
]
CHATS = [
    ({"messages": []}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": [{"role": "owner", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages[0].content[0]"),
    ({"messages": [{"role": "assistant", "audio": {"id": "a"}}]}, "messages[0].audio"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"tools": [{"type": "custom"}]}, "tools[0].type"),
    ({"tools": [TOOL], "parallel_tool_calls": False}, "parallel_tool_calls"),
    ({"tools": [{"type": "function", "function": {"name": "f", "strict": True}}]}, "tools[0].function.strict"),
    ({"tools": [TOOL], "tool_choice": "required"}, "tool_choice"),
    ({"audio": {"voice": "alloy"}}, "audio"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"reasoning_effort": "high"}, "reasoning_effort"),
    ({"functions": [{"name": "f"}]}, "functions"),
    ({"max_completion_tokens": 512}, "max_completion_tokens"),
]


@pytest.mark.parametrize(("fields", "param"), COMPLETIONS)
def test_bad_fields_of_completions(served: Served, fields: dict, param: str):
    error = told(served.post(**({"prompt": "abc", "max_tokens": 4} | fields)), 400)
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param


@pytest.mark.parametrize(("fields", "param"), CHATS)
def test_bad_fields_of_chats(served: Served, fields: dict, param: str):
    error = told(served.post(CHAT, **({"messages": TURNS, "max_tokens": 4} | fields)), 400)
    assert error["param"] == param


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": 2.5}, "temperature must be less than or equal to 2"),
        ({"messages": []}, "messages must have at least 1 item, not 0"),
        ({"stop": ""}, "stop must have at least 1 character"),
        ({"seed": "a"}, "seed must be a valid integer"),
    ],
)
def test_messages_say_what_a_field_must_be(served: Served, fields: dict, message: str):
    assert told(served.post(CHAT, **({"messages": TURNS, "max_tokens": 4} | fields)), 400)["message"] == message


def test_fields_that_change_nothing_are_taken(served: Served):
    plain = {"messages": TURNS, "max_tokens": 4, "temperature": 0}
    harmless = {
        "user": "u", "metadata": {"a": "b"}, "store": True, "service_tier": "auto", "n": None, "stop": None,
        "presence_penalty": 0, "logit_bias": {}, "response_format": {"type": "text"}, "parallel_tool_calls": True,
        "modalities": ["text"], "tools": [], "tool_choice": "auto", "audio": None, "prediction": {"type": "content"},
    }  # fmt: skip
    first, second = served.post(CHAT, **plain), served.post(CHAT, **plain, **harmless)
    assert first.json()["choices"] == second.json()["choices"]


@pytest.mark.parametrize(
    "body", [b"", b"{", b"null", b"[]", b'"a"', b"\xff", b'{"model": "oracle", "prompt": "\\ud800"}', b"[" * 100_000]
)
def test_bodies_that_are_no_requests(served: Served, body: bytes):
    answer = httpx.post(f"{served.url}/v1/completions", content=body, headers={"Content-Type": "application/json"})
    assert told(answer, 400)["code"] == "invalid_json"


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e400"])
def test_numbers_that_are_none(served: Served, number: str):
    body = f'{{"model": "oracle", "prompt": "a", "temperature": {number}}}'
    answer = httpx.post(f"{served.url}/v1/completions", content=body, headers={"Content-Type": "application/json"})
    told(answer, 400)


def test_paths_and_methods_that_there_are_not(served: Served):
    assert told(httpx.get(f"{served.url}/v1/nothing"), 404)["code"] == "not_found"
    wrong = httpx.get(served.url + CHAT)
    assert told(wrong, 405)["code"] == "method_not_allowed"
    assert wrong.headers["allow"] == "POST"
    assert told(served.post(model="gpt-4", prompt="a"), 404)["code"] == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        served.client().models.retrieve("gpt-4")


def test_other_kinds_of_bodies_are_refused(served: Served):
    """A page elsewhere can have a browser send these without asking."""
    answer = httpx.post(f"{served.url}/v1/completions", content=b'{"model": "oracle", "prompt": "a"}')
    assert told(answer, 415)["code"] == "not_json"


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", ""])
def test_other_hosts_are_refused(served: Served, host: str):
    """A page elsewhere can have its own name lead here."""
    assert told(httpx.get(f"{served.url}/v1/models", headers={"Host": host}), 403)["code"] == "wrong_host"


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "[::1]:80", "[::1]"])
def test_names_of_this_machine_are_taken(served: Served, host: str):
    assert httpx.get(f"{served.url}/v1/models", headers={"Host": host}).status_code == 200


def test_a_key(served: Served):
    with running(served.model, key="sekret") as locked:
        for path in ("/v1/models", "/metrics", "/v1/nothing"):
            for given in (
                {},
                {"Authorization": "Bearer sekre"},
                {"Authorization": "Basic sekret"},
                {"Authorization": b"Bearer \xff"},
            ):
                answer = httpx.get(locked.url + path, headers=given)
                assert told(answer, 401)["code"] == "invalid_api_key"
                assert answer.headers["www-authenticate"] == "Bearer"
        assert httpx.get(f"{locked.url}/health").status_code == 200
        assert httpx.get(locked.url).status_code == 200
        assert [each.id for each in locked.client(api_key="sekret").models.list()] == [NAME]
        with pytest.raises(openai.AuthenticationError):
            locked.client(api_key="wrong").models.list()


def test_limits(served: Served):
    with running(served.model, Limits(body=1000, prompt=20, choices=2)) as small:
        assert told(small.post(prompt="a" * 1000), 413)["code"] == "body_too_large"

        def parts():
            for _ in range(100):
                yield b" " * 100

        endless = httpx.post(
            f"{small.url}/v1/completions", content=parts(), headers={"Content-Type": "application/json"}
        )
        assert told(endless, 413)["code"] == "body_too_large"
        assert told(small.post(prompt="a" * 21), 400)["code"] == "context_length_exceeded"
        assert told(small.post(prompt="a", n=3), 400)["param"] == "n"
        assert small.post(prompt="a" * 20, n=2, max_tokens=2).status_code == 200


def test_a_very_large_body(served: Served):
    """The answer comes although the body is not read."""
    body = json.dumps({"model": NAME, "prompt": "a" * 20_000_000}).encode()
    try:
        answer = httpx.post(f"{served.url}/v1/completions", content=body, headers={"Content-Type": "application/json"})
    except httpx.WriteError:
        pytest.skip("the connection was closed before the answer was read")
    assert told(answer, 413)["code"] == "body_too_large"


def test_models_without_a_chat_template():
    model = compiled()
    model.tokenizer.chat_template = None
    with running(model) as bare:
        assert told(bare.post(CHAT, messages=TURNS), 400)["code"] == "no_chat_template"
        assert bare.post(prompt="a", max_tokens=2).status_code == 200


def test_templates_that_refuse_or_take_no_tools():
    model = compiled()
    model.tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no systems') }}{% endif %}a"
    )
    with running(model) as strange:
        error = told(strange.post(CHAT, messages=[{"role": "system", "content": "x"}]), 400)
        assert "no systems" in error["message"]
        assert told(strange.post(CHAT, messages=TURNS, tools=[TOOL]), 400)["param"] == "tools"
    assert tokenizer().chat_template == TEMPLATE
