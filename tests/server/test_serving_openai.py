"""The official client against a server: all that it gets is what `generate` gives."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from tests.server.served import END, NAME, Served, compiled, running

TURNS = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name three islands."}]
SAMPLED = {"temperature": 1.2, "seed": 11}
GREEDY = {"temperature": 0}


def expected(served: Served, prompt: list[int], count: int, identifier: int = 0, **keywords: Any) -> Any:
    """What plain decoding gives."""
    model, tokenizer = served.model, served.model.tokenizer
    [asked] = model.asked(prompt, max_new_tokens=count, return_logits=True, **keywords)
    oracle, tokens, rows = model.executable, list(prompt), []
    from dataclasses import replace

    from forerun.runtime.sampling import choose_token

    request = replace(asked.request, identifier=identifier)
    while len(rows) < count:
        rows.append(oracle.logits(tokens))
        tokens.append(choose_token(rows[-1], request.sampling, identifier, len(tokens)))
        if tokens[-1] == END:
            break
    new = tokens[len(prompt) :]
    return new, tokenizer.decode(new, skip_special_tokens=True), rows


def chat_ids(served: Served) -> list[int]:
    text = served.model.tokenizer.apply_chat_template(TURNS, add_generation_prompt=True, tokenize=False)
    return served.model.tokenizer.encode(text, add_special_tokens=False)


@pytest.mark.parametrize(("given", "keywords"), [(GREEDY, {}), (SAMPLED, {"do_sample": True, **SAMPLED})])
def test_chat(served: Served, given: dict, keywords: dict):
    new, text, _ = expected(served, chat_ids(served), 60, **keywords)
    answer = served.client().chat.completions.create(model=NAME, messages=TURNS, max_completion_tokens=60, **given)
    [choice] = answer.choices
    assert choice.message.content == text
    assert choice.message.role == "assistant"
    assert choice.finish_reason == ("stop" if new[-1] == END else "length")
    assert answer.usage.prompt_tokens == len(chat_ids(served))
    assert answer.usage.completion_tokens == len(new)
    assert answer.usage.total_tokens == len(chat_ids(served)) + len(new)
    assert answer.seed == given.get("seed")
    assert answer.system_fingerprint == served.service.fingerprint
    assert answer.id.startswith("chatcmpl-")


@pytest.mark.parametrize("given", [GREEDY, SAMPLED, {**SAMPLED, "n": 3, "logprobs": True, "top_logprobs": 3}])
def test_a_stream_is_the_whole_answer(served: Served, given: dict):
    create = served.client().chat.completions.create
    given = {"model": NAME, "messages": TURNS, "max_tokens": 50, **given}
    whole = create(**given)
    texts: dict[int, str] = {}
    reasons: dict[int, str] = {}
    logprobs: dict[int, list] = {}
    usage = None
    for chunk in create(**given, stream=True, stream_options={"include_usage": True}):
        assert usage is None, "usage comes last"
        usage = chunk.usage
        for choice in chunk.choices:
            assert choice.index not in reasons
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
            if choice.logprobs:
                logprobs.setdefault(choice.index, []).extend(choice.logprobs.content)
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
    assert texts == {choice.index: choice.message.content for choice in whole.choices}
    assert reasons == {choice.index: choice.finish_reason for choice in whole.choices}
    assert usage == whole.usage
    if "logprobs" in given:
        assert logprobs == {choice.index: choice.logprobs.content for choice in whole.choices}


def test_the_asynchronous_client_streams(served: Served):
    import asyncio

    from openai import AsyncOpenAI

    async def texts() -> list[str]:
        client = AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)

        async def one(seed: int) -> str:
            stream = await client.completions.create(
                model=NAME, prompt="abc", max_tokens=30, seed=seed, temperature=1, stream=True
            )
            return "".join([chunk.choices[0].text async for chunk in stream])

        return await asyncio.gather(*(one(seed) for seed in range(6)))

    ids = served.model.tokenizer.encode("abc")
    assert asyncio.run(texts()) == [expected(served, ids, 30, do_sample=True, seed=seed)[1] for seed in range(6)]


def test_completions_of_several_prompts(served: Served):
    prompts = ["abc", "the cat sat on the cat", "é"]
    answer = served.client().completions.create(model=NAME, prompt=prompts, max_tokens=20, n=2, **SAMPLED)
    assert [choice.index for choice in answer.choices] == list(range(6))
    for choice in answer.choices:
        ids = served.model.tokenizer.encode(prompts[choice.index // 2])
        _, text, _ = expected(served, ids, 20, choice.index % 2, do_sample=True, **SAMPLED)
        assert choice.text == text
    assert answer.usage.prompt_tokens == sum(len(served.model.tokenizer.encode(each)) for each in prompts)
    assert answer.choices[0].text != answer.choices[1].text


def test_token_ids_as_prompts(served: Served):
    create = served.client().completions.create
    for prompt, count in (([5, 6, 7], 1), ([[5, 6, 7], [8]], 2)):
        answer = create(model=NAME, prompt=prompt, max_tokens=9, **GREEDY)
        firsts = prompt if count > 1 else [prompt]
        assert [each.text for each in answer.choices] == [expected(served, ids, 9)[1] for ids in firsts]


@pytest.mark.parametrize("given", [GREEDY, SAMPLED])
def test_logprobs_are_those_of_the_logits(served: Served, given: dict):
    keywords = {"do_sample": True, **SAMPLED} if given is SAMPLED else {}
    new, _, rows = expected(served, chat_ids(served), 40, **keywords)
    answer = served.client().chat.completions.create(
        model=NAME, messages=TURNS, max_tokens=40, logprobs=True, top_logprobs=5, **given
    )
    content = answer.choices[0].logprobs.content
    assert len(content) == len(new)
    tokenizer = served.model.tokenizer
    for told, token, row in zip(content, new, rows, strict=True):
        scores = row.astype(np.float64)
        scores -= np.log(np.sum(np.exp(scores)))
        assert told.logprob == pytest.approx(scores[token], abs=1e-9)
        order = sorted(range(len(scores)), key=lambda each: (-scores[each], each))[:5]
        assert [each.logprob for each in told.top_logprobs] == pytest.approx([scores[each] for each in order])
        assert [bytes(each.bytes) for each in told.top_logprobs] == [byte_of(tokenizer, each) for each in order]
    total = sum(each.logprob for each in content)
    assert total == pytest.approx(
        sum(float(row[t] - np.log(np.exp(row.astype(float)).sum())) for row, t in zip(rows, new, strict=True))
    )
    joined = b"".join(bytes(each.bytes) for each in content if each.token not in tokenizer.all_special_tokens)
    assert joined.decode("utf-8", "replace") == answer.choices[0].message.content


def byte_of(tokenizer: Any, token: int) -> bytes:
    piece = tokenizer.convert_ids_to_tokens(token)
    if piece in tokenizer.all_special_tokens:
        return piece.encode()
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return bytes({letter: byte for byte, letter in bytes_to_unicode().items()}[letter] for letter in piece)


def test_logprobs_of_completions(served: Served):
    new, _, rows = expected(served, [5, 6], 12)
    answer = served.client().completions.create(model=NAME, prompt=[5, 6], max_tokens=12, logprobs=2, **GREEDY)
    told = answer.choices[0].logprobs
    assert len(told.tokens) == len(told.token_logprobs) == len(told.top_logprobs) == len(told.text_offset) == len(new)
    assert told.text_offset[0] == 0
    assert all(len(each) <= 2 for each in told.top_logprobs)
    assert told.token_logprobs[0] == pytest.approx(rows[0][new[0]] - np.log(np.exp(rows[0].astype(float)).sum()))


def test_stop_strings_end_texts(served: Served):
    create = served.client().completions.create
    whole = create(model=NAME, prompt="abc", max_tokens=80, **GREEDY).choices[0]
    at = len(whole.text) // 2
    stop = whole.text[at : at + 2]
    start = whole.text.index(stop)
    for stream in (False, True):
        answer = create(model=NAME, prompt="abc", max_tokens=80, stop=["never\0", stop], stream=stream, **GREEDY)
        chunks = list(answer) if stream else [answer]
        assert "".join(each.choices[0].text for each in chunks) == whole.text[:start]
        assert chunks[-1].choices[0].finish_reason == "stop"


def test_a_seed_gives_the_same_text_beside_others(served: Served):
    """Alone, beside eight others, in a stream, and as the first of several."""
    create = served.client().completions.create

    def text(seed: int, **options: Any) -> str:
        given = {"model": NAME, "prompt": "the cat sat", "max_tokens": 60, "temperature": 1.0, "seed": seed, **options}
        answer = create(**given)
        return "".join(c.choices[0].text for c in answer) if options.get("stream") else answer.choices[0].text

    alone = text(5)
    assert text(6) != alone
    with ThreadPoolExecutor(9) as pool:
        others = [pool.submit(text, seed) for seed in range(100, 108)]
        beside = [pool.submit(text, 5), pool.submit(text, 5, stream=True), pool.submit(text, 5, n=3)]
        assert [each.result() for each in beside] == [alone] * 3
        assert len({each.result() for each in others}) == 8


def test_without_a_seed_one_is_made_up_and_told(served: Served):
    create = served.client().completions.create
    first = create(model=NAME, prompt="abc", max_tokens=30)
    second = create(model=NAME, prompt="abc", max_tokens=30)
    assert first.seed != second.seed
    assert first.choices[0].text != second.choices[0].text
    assert create(model=NAME, prompt="abc", max_tokens=30, seed=first.seed).choices[0].text == first.choices[0].text
    chunks = list(create(model=NAME, prompt="abc", max_tokens=5, stream=True))
    assert len({chunk.seed for chunk in chunks}) == 1


def test_defaults_are_openais(served: Served):
    create = served.client().completions.create
    assert create(model=NAME, prompt="a", **GREEDY).usage.completion_tokens <= 16
    chat = served.client().chat.completions.create(model=NAME, messages=TURNS, seed=-1)
    assert chat.choices[0].finish_reason == "stop" or chat.usage.total_tokens == served.model.max_length


@pytest.mark.parametrize("given", [GREEDY, SAMPLED])
@pytest.mark.parametrize("stream", [False, True])
def test_penalties_and_biases(served: Served, given: dict, stream: bool):
    """OpenAI's formula: logit + bias - presence * (count > 0) - frequency * count, of the new tokens so far."""
    from forerun.runtime.sampling import SamplingSettings, choose_token

    presence, frequency, bias = 0.9, 0.5, {40: 3.5, 41: -100.0, 42: 2.25}
    sampling = SamplingSettings(do_sample=True, **SAMPLED) if given is SAMPLED else SamplingSettings()
    prompt, new = served.model.tokenizer.encode("abc"), list[int]()
    while len(new) < 50 and END not in new:
        scores = served.model.executable.logits([*prompt, *new]).astype(np.float32)
        counts = np.bincount(new, minlength=len(scores))
        scores = scores - np.float32(presence) * (counts > 0) - np.float32(frequency) * counts
        for token, value in bias.items():
            scores[token] += value
        new.append(choose_token(scores.astype(np.float32), sampling, 0, len(prompt) + len(new)))
    answer = served.client().completions.create(
        model=NAME, prompt="abc", max_tokens=50, presence_penalty=presence, frequency_penalty=frequency,
        logit_bias={str(token): value for token, value in bias.items()}, stream=stream, **given,
    )  # fmt: skip
    chunks = list(answer) if stream else [answer]
    expected_text = served.model.tokenizer.decode(new, skip_special_tokens=True)
    assert "".join(each.choices[0].text for each in chunks) == expected_text
    assert len(set(new)) > 20, "penalties make texts varied"


@pytest.mark.parametrize("extra", [{"top_k": 3}, {"min_p": 0.3}, {"top_p": 0.5}])
def test_filters(served: Served, extra: dict):
    create = served.client().completions.create
    ids = served.model.tokenizer.encode("abc")
    answer = create(model=NAME, prompt="abc", max_tokens=40, extra_body=extra, **SAMPLED)
    assert answer.choices[0].text == expected(served, ids, 40, do_sample=True, **SAMPLED, **extra)[1]
    assert answer.choices[0].text != expected(served, ids, 40, do_sample=True, **SAMPLED)[1]


def test_a_models_own_defaults_apply_unless_given():
    model = compiled()
    ids = model.tokenizer.encode("abc")
    with running(model) as served:
        given = {"do_sample": True, "seed": 3}
        other = expected(served, ids, 20, **given, temperature=0.5, top_k=3)[1]
        plain = expected(served, ids, 20, **given)[1]
        model.defaults = {"top_k": 3, "temperature": 0.5}
        options = {"model": NAME, "prompt": "abc", "max_tokens": 20, "seed": 3}
        create = served.client().completions.create
        assert create(**options).choices[0].text == other
        assert create(**options, temperature=1, extra_body={"top_k": 0}).choices[0].text == plain != other


SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["Iona", "Mull"]}, "size": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["name", "size"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("given", [GREEDY, SAMPLED])
def test_json_schemas(served: Served, given: dict):
    create = served.client().chat.completions.create
    form = {"type": "json_schema", "json_schema": {"name": "island", "strict": True, "schema": SCHEMA}}
    options = {"model": NAME, "messages": TURNS, "max_tokens": 200, "response_format": form, "n": 2, **given}
    whole = create(**options)
    texts = ["", ""]
    for chunk in create(**options, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    for choice, streamed in zip(whole.choices, texts, strict=True):
        assert choice.message.content == streamed
        assert choice.finish_reason == "stop"
        read = json.loads(streamed)
        assert read["name"] in ("Iona", "Mull")
        assert read["size"] in range(10)


def test_json_objects(served: Served):
    create = served.client().chat.completions.create
    form = {"type": "json_object"}
    for seed in range(4):
        answer = create(model=NAME, messages=TURNS, response_format=form, max_tokens=300, seed=seed, temperature=0.3)
        assert answer.choices[0].message.content.lstrip().startswith("{")
        if answer.choices[0].finish_reason == "stop":
            assert isinstance(json.loads(answer.choices[0].message.content), dict)


def test_models(served: Served):
    models = served.client().models
    assert [each.id for each in models.list()] == [NAME]
    assert models.retrieve(NAME).owned_by == "forerun"


def test_tool_calls(served: Served):
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    tokenizer = served.model.tokenizer
    prompt = tokenizer.apply_chat_template(TURNS, tools=tools, add_generation_prompt=True, tokenize=False)
    text = 'Let me see.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Graz"}}\n</tool_call>'
    ids = tokenizer.encode(prompt, add_special_tokens=False)
    served.model.executable.write(ids, [*tokenizer.encode(text, add_special_tokens=False), END])
    create = served.client().chat.completions.create
    given = {"model": NAME, "messages": TURNS, "tools": tools, **GREEDY}
    choice = create(**given).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Let me see."
    [call] = choice.message.tool_calls
    assert (call.type, call.function.name) == ("function", "weather")
    assert json.loads(call.function.arguments) == {"city": "Graz"}
    deltas = [chunk.choices[0].delta for chunk in create(**given, stream=True)]
    assert "".join(delta.content or "" for delta in deltas) == "Let me see."
    [streamed] = [call for delta in deltas for call in delta.tool_calls or ()]
    assert (streamed.index, streamed.function) == (0, type(streamed.function)(**call.function.model_dump()))

    turns = [
        *TURNS,
        choice.message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "21"},
    ]
    assert create(model=NAME, messages=turns, tools=tools, max_tokens=3, **GREEDY).choices[0].finish_reason
    none = create(model=NAME, messages=TURNS, tools=tools, tool_choice="none", max_tokens=20, **GREEDY)
    assert none.choices[0].message.content == expected(served, chat_ids(served), 20)[1]


def test_developers_are_systems_and_parts_are_texts(served: Served):
    turns = [
        {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]},
        TURNS[1],
    ]
    create = served.client().chat.completions.create
    options = {"model": NAME, "max_tokens": 12, **GREEDY}
    assert create(messages=turns, **options).choices[0] == create(messages=TURNS, **options).choices[0]
