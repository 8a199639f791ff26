"""Answers as OpenAI's API has them: whole ones, and chunks of a stream, of which whole ones are made."""

from __future__ import annotations

import time
import uuid
from codecs import getincrementaldecoder
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from forerun.server.logprobs import TokenLogprobs
from forerun.server.pieces import Piece
from forerun.server.token_text import token_bytes
from forerun.server.tool_calls import ToolCall, ToolCallParser


@dataclass
class Usage:
    """How many tokens a request has had."""

    prompt: int
    completion: int = 0

    def to_dict(self) -> dict[str, int]:
        total = self.prompt + self.completion
        return {"prompt_tokens": self.prompt, "completion_tokens": self.completion, "total_tokens": total}


@dataclass(frozen=True)
class Heading:
    """What all objects of an answer begin with. `seed` gives the same texts again; None if they are not sampled."""

    model: str
    fingerprint: str
    seed: int | None
    prefix: str
    created: int = field(default_factory=lambda: int(time.time()))
    unique: str = field(default_factory=lambda: uuid.uuid4().hex)

    def to_dict(self, kind: str) -> dict[str, Any]:
        return {
            "id": f"{self.prefix}-{self.unique}",
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "seed": self.seed,
        }


class Choice(Protocol):
    """One text of an answer."""

    kind: str  # of whole answers
    chunk: str  # of streams
    prefix: str  # of identifiers

    def first(self) -> list[dict[str, Any]]:
        """Returns the chunks before the text."""
        ...

    def chunks(self, piece: Piece) -> list[dict[str, Any]]:
        """Returns the chunks of a piece."""
        ...

    def whole(self) -> dict[str, Any]:
        """Returns the text so far."""
        ...


class CompletionChoice:
    """A text of /v1/completions."""

    kind = chunk = "text_completion"
    prefix = "cmpl"

    def __init__(self, index: int, tokenizer: Any, top: int | None) -> None:
        self.index, self.tokenizer, self.top = index, tokenizer, top
        self._texts: list[str] = []
        self._logprobs: list[dict[str, Any]] = []
        self._offset = 0  # characters of the tokens so far
        self._characters = getincrementaldecoder("utf-8")("replace")
        self._reason: str | None = None

    def first(self) -> list[dict[str, Any]]:
        return []

    def chunks(self, piece: Piece) -> list[dict[str, Any]]:
        logprobs = None if self.top is None else self._told(piece.logprobs)
        self._texts.append(piece.text)
        self._reason = piece.finish_reason
        if logprobs is not None:
            self._logprobs.append(logprobs)
        if not (piece.text or piece.logprobs or piece.tree is not None or piece.finish_reason):
            return []
        return [_with_tree(self._choice(piece.text, logprobs, piece.finish_reason), piece)]

    def whole(self) -> dict[str, Any]:
        joined = {name: [each for part in self._logprobs for each in part[name]] for name in self._told(())}
        return self._choice("".join(self._texts), None if self.top is None else joined, self._reason)

    def _choice(self, text: str, logprobs: Any, reason: str | None) -> dict[str, Any]:
        return {"index": self.index, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _told(self, places: Sequence[TokenLogprobs]) -> dict[str, Any]:
        texts = [_text(self.tokenizer, each.token) for each in places]
        offsets: list[int] = []
        for each in places:
            offsets.append(self._offset)
            self._offset += len(self._characters.decode(token_bytes(self.tokenizer, each.token)))
        tops = [{_text(self.tokenizer, token): logprob for token, logprob in each.top} for each in places]
        return {
            "tokens": texts,
            "token_logprobs": [each.logprob for each in places],
            "top_logprobs": tops,
            "text_offset": offsets,
        }


class ChatChoice:
    """An assistant's message of /v1/chat/completions."""

    kind, chunk = "chat.completion", "chat.completion.chunk"
    prefix = "chatcmpl"

    def __init__(self, index: int, tokenizer: Any, top: int | None, calls: bool) -> None:
        """`calls`: whether the text may hold tool calls."""
        self.index, self.tokenizer, self.top = index, tokenizer, top
        self._parser = ToolCallParser() if calls else None
        self._texts: list[str] = []
        self._calls: list[dict[str, Any]] = []
        self._logprobs: list[dict[str, Any]] = []
        self._reason: str | None = None

    def first(self) -> list[dict[str, Any]]:
        return [self._chunk({"role": "assistant", "content": ""})]

    def chunks(self, piece: Piece) -> list[dict[str, Any]]:
        deltas = [self._delta(each) for each in self._separated(piece)]
        logprobs = None if self.top is None else self._told(piece.logprobs)
        if not deltas and (logprobs or piece.tree is not None):
            deltas = [{"content": ""}]
        found = [self._chunk(delta) for delta in deltas]
        if found:
            found[0] = _with_tree(found[0] | {"logprobs": logprobs}, piece)
        if piece.finish_reason is not None:
            self._reason = "tool_calls" if self._calls and piece.finish_reason == "stop" else piece.finish_reason
            found.append(self._chunk({}, self._reason))
        return found

    def whole(self) -> dict[str, Any]:
        text = "".join(self._texts)
        message: dict[str, Any] = {"role": "assistant", "content": text or ("" if not self._calls else None)}
        message |= {"refusal": None} | ({"tool_calls": self._calls} if self._calls else {})
        logprobs = None if self.top is None else {"content": self._logprobs, "refusal": None}
        return {"index": self.index, "message": message, "logprobs": logprobs, "finish_reason": self._reason}

    def _separated(self, piece: Piece) -> Iterable[str | ToolCall]:
        if self._parser is None:
            return [piece.text] if piece.text else []
        return [*self._parser.add(piece.text), *(self._parser.end() if piece.finish_reason else ())]

    def _delta(self, part: str | ToolCall) -> dict[str, Any]:
        if isinstance(part, str):
            self._texts.append(part)
            return {"content": part}
        function = {"name": part.name, "arguments": part.arguments}
        call = {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}
        self._calls.append(call)
        return {"tool_calls": [{"index": len(self._calls) - 1, **call}]}

    def _chunk(self, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        return {"index": self.index, "delta": delta, "logprobs": None, "finish_reason": reason}

    def _told(self, places: Sequence[TokenLogprobs]) -> dict[str, Any] | None:
        told = [
            _token(self.tokenizer, each.token, each.logprob)
            | {"top_logprobs": [_token(self.tokenizer, token, logprob) for token, logprob in each.top]}
            for each in places
        ]
        self._logprobs += told
        return {"content": told, "refusal": None} if told else None


def _with_tree(chunk: dict[str, Any], piece: Piece) -> dict[str, Any]:
    return chunk if piece.tree is None else chunk | {"tree": piece.tree}


def _text(tokenizer: Any, token: int) -> str:
    """Returns a token's text; OpenAI's form of bytes that are no text."""
    found = token_bytes(tokenizer, token)
    try:
        return found.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in found)


def _token(tokenizer: Any, token: int, logprob: float) -> dict[str, Any]:
    found = token_bytes(tokenizer, token)
    return {"token": found.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(found)}
