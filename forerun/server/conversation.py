"""Conversations as prompts, by the model's chat template."""

from __future__ import annotations

import json
from typing import Any

from forerun.errors import first_sentence
from forerun.server.bodies import ChatBody, Message
from forerun.server.refusals import RefusedError
from forerun.server.unsupported import check_others


def encoded_chat(tokenizer: Any, body: ChatBody) -> list[int]:
    """Returns a conversation's token ids, ready for the answer. Raises `RefusedError`."""
    if not getattr(tokenizer, "chat_template", None):
        raise RefusedError("this model has no chat template: use /v1/completions", "messages", "no_chat_template")
    turns, tools = [turn(each, number) for number, each in enumerate(body.messages)], tools_of(body)
    if tools and "tools" not in str(tokenizer.chat_template):
        raise RefusedError("the model's chat template takes no tools: leave them out", "tools", "unsupported_parameter")
    given = {"tools": tools} if tools else {}
    try:
        text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False, **given)
    except Exception as error:  # a template is a program of the model's author
        raise RefusedError(
            f"the model's chat template fails on these messages ({first_sentence(error)}): change them", "messages"
        ) from error
    return encoded(tokenizer, str(text), "messages", add_special_tokens=False)  # the template writes them itself


def encoded(tokenizer: Any, text: str, param: str, **options: Any) -> list[int]:
    """Returns a text's token ids. Raises `RefusedError`."""
    try:
        found = list(tokenizer.encode(text, **options))
    except Exception as error:  # a tokenizer may raise anything
        raise RefusedError(f"the tokenizer cannot encode it ({first_sentence(error)}): change it", param) from error
    if not found:
        raise RefusedError("the prompt is empty: give a text", param)
    return found


def turn(message: Message, number: int) -> dict[str, Any]:
    """Returns a message as templates expect it: one text, and the arguments of calls as objects."""
    place = f"messages[{number}]"
    check_others({name: each for name, each in message.others.items() if name != "refusal"}, place)
    role = "system" if message.role == "developer" else message.role
    found: dict[str, Any] = {"role": role, "content": _text(message, f"{place}.")}
    found |= {name: value for name in ("name", "tool_call_id") if (value := getattr(message, name)) is not None}
    if message.tool_calls:
        found["tool_calls"] = [
            {
                "id": call.id,
                "type": call.type,
                "function": {"name": call.function.name, "arguments": _arguments(call.function.arguments)},
            }
            for call in message.tool_calls
        ]
    return found


def _text(message: Message, place: str) -> str:
    if message.content is None:
        if message.role != "assistant":
            raise RefusedError(f"{place}content is missing: give a text", f"{place}content")
        return ""
    if isinstance(message.content, str):
        return message.content
    for at, part in enumerate(message.content):
        if part.type != "text" or part.text is None:
            where = f"{place}content[{at}]"
            raise RefusedError(
                f"{where} is of type {part.type[:40]!r}, but only 'text' is supported", where, "unsupported_parameter"
            )
    return "".join(part.text or "" for part in message.content)


def _arguments(text: str) -> Any:
    """Returns the object that a call's arguments are; the text itself if they are none."""
    try:
        read = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return read if isinstance(read, dict) else text


def tools_of(body: ChatBody) -> list[dict[str, Any]]:
    """Returns the tools that the template is told of. Raises `RefusedError` for what cannot be guaranteed."""
    choice = body.tool_choice
    if choice not in (None, "auto", "none"):
        raise RefusedError(
            "tool_choice may be 'auto' or 'none': this server cannot force a call", "tool_choice",
            "unsupported_parameter",
        )  # fmt: skip
    for number, tool in enumerate(body.tools or ()):
        place = f"tools[{number}]"
        check_others(tool.others, place)
        check_others(tool.function.others, f"{place}.function")
        if tool.function.strict:
            where = f"{place}.function.strict"
            raise RefusedError(f"{where} is not supported: leave it out", where, "unsupported_parameter")
    return [] if choice == "none" else [tool.model_dump(exclude_none=True) for tool in body.tools or ()]
