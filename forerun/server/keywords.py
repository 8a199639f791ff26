"""A request's fields as keywords of `generate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from forerun.runtime.hooks.grammars import JsonSchema
from forerun.server.bodies import Body, ChatBody, CompletionBody
from forerun.server.refusals import RefusedError
from forerun.server.unsupported import check_others

COMPLETION_TOKENS = 16
"""The most new tokens of /v1/completions by default, as in OpenAI's API."""
SEEDS = 2**64
SCHEMA = 120_000
"""The most characters of a JSON schema."""

SAMPLING = ("temperature", "top_p", "top_k", "min_p")
"""Fields that are keywords by the same name, and need sampling."""
PENALTIES = ("presence_penalty", "frequency_penalty")
ALONE = {"num_return_sequences": 1, "num_beams": 1, "num_beam_groups": 1, "diversity_penalty": 0.0}
"""Keywords against a model's defaults that would search for texts, or give several: `n` says how many there are."""


def keywords_of(body: Body, seed: int) -> dict[str, Any]:
    """Returns the keywords besides the lengths; for what is not given, the model's own defaults apply."""
    found: dict[str, Any] = ALONE | {"do_sample": body.is_sampled, "return_logits": top_of(body) is not None}
    if body.is_sampled:
        found |= {"seed": seed % SEEDS} | _given(body, SAMPLING)
    found |= _given(body, PENALTIES)
    if body.logit_bias:
        found["logit_bias"] = biases(body.logit_bias)
    if body.stop:
        found["stop"] = body.stop
    if (grammar := grammar_of(body.response_format)) is not None:
        found |= grammar
    return found


def _given(body: Body, names: Sequence[str]) -> dict[str, Any]:
    return {name: value for name in names if (value := getattr(body, name)) is not None}


def grammar_of(response_format: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Returns the keywords that make an answer follow a format; None for plain text. Raises `RefusedError`."""
    if response_format is None:
        return None
    place = "response_format"
    kind = response_format.get("type")
    check_others({name: value for name, value in response_format.items() if name not in ("type", "json_schema")}, place)
    match kind:
        case "text":
            return None
        case "json_object":
            schema: Any = {"type": "object"}
        case "json_schema":
            given = response_format.get("json_schema")
            schema = cast("Mapping[str, Any]", given).get("schema") if isinstance(given, Mapping) else None
            place = f"{place}.json_schema.schema"
            if not isinstance(schema, Mapping):
                raise RefusedError(f"{place} is missing: give an object", place, "missing_required_parameter")
            if "x-guidance" in schema:  # llguidance's own, which would let it pass over parts of a schema
                raise RefusedError(f"there is no field {place}.x-guidance: leave it out", place, "unknown_parameter")
        case _:
            raise RefusedError(
                f"{place} is of type {str(kind)[:40]!r}: give 'text', 'json_object' or 'json_schema'",
                place,
                "invalid_value",
            )
    grammar = JsonSchema(schema, compact=True)
    if len(grammar.schema) > SCHEMA:
        raise RefusedError(f"{place} has more than {SCHEMA} characters: give a smaller one", place, "invalid_value")
    return {"grammar": grammar}


def top_of(body: Body) -> int | None:
    """Returns how many of the likeliest tokens are told at each place; None if no log-probabilities are."""
    if isinstance(body, CompletionBody):
        return body.logprobs
    assert isinstance(body, ChatBody)
    if body.logprobs:
        return body.top_logprobs or 0
    if body.top_logprobs:
        raise RefusedError("top_logprobs needs logprobs: add logprobs=true", "top_logprobs", "invalid_value")
    return None


def length_of(body: Body, prompt: int, room: int, most_of_prompt: int | None) -> int:
    """Returns the most new tokens after a prompt of `prompt` tokens, where `room` positions are left.

    Raises `RefusedError` if the prompt is too long, or both together are.
    """
    field = "messages" if isinstance(body, ChatBody) else "prompt"
    if most_of_prompt is not None and prompt > most_of_prompt:
        raise _too_long(f"the prompt has {prompt} tokens, but this server takes {most_of_prompt}: shorten it", field)
    if room < 1:
        raise _too_long(f"the prompt has {prompt} tokens, and the model takes {prompt + room - 1}: shorten it", field)
    chat = isinstance(body, ChatBody)
    name, wanted = "max_tokens", body.max_tokens
    if chat and body.max_completion_tokens is not None:
        name, wanted = "max_completion_tokens", body.max_completion_tokens
    if wanted is None:
        return room if chat else min(room, COMPLETION_TOKENS)
    if wanted > room:
        raise _too_long(
            f"a prompt of {prompt} tokens and {wanted} new ones exceed the model's {prompt + room} positions: shorten "
            f"the prompt, or give a smaller {name}",
            name,
        )
    return wanted


def _too_long(message: str, param: str) -> RefusedError:
    return RefusedError(message, param, "context_length_exceeded")


def biases(given: Mapping[str, float]) -> dict[int, float]:
    """Returns biases by token id, which JSON has as texts. Raises `RefusedError`."""
    found: dict[int, float] = {}
    for name, bias in given.items():
        if not (name.isascii() and name.isdecimal() and len(name) <= 9):
            raise RefusedError(f"logit_bias has the key {name[:40]!r}: give token ids", "logit_bias", "invalid_value")
        found[int(name)] = bias
    return found
