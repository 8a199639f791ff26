"""The fields of requests, as pydantic checks them; all others are in `unsupported`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from forerun.server.refusals import RefusedError
from forerun.server.unsupported import check_others

STOPS = 16
"""The most stop texts."""
TOP = 20
"""The most likeliest tokens at each place."""
COUNT = 2**31 - 1
STOP_LENGTH = 1000
"""The most characters of a stop text: after each step, the text's end is compared with its beginnings."""
MEMBERS = 10_000
"""The most members of a list or an object that is checked one by one: each of them may be wrong, and is told of."""
Penalty = Annotated[float, Field(ge=-2, le=2)]
Bias = Annotated[float, Field(ge=-100, le=100)]
StopText = Annotated[str, Field(min_length=1, max_length=STOP_LENGTH)]
KIND = re.compile(r"str|(constrained|function|list)[-\[].*")
"""The name of a union's member in the place of an error."""
Prompts = list[str] | list[list[int]]
Members = Field(max_length=MEMBERS)


class Fields(BaseModel):
    """Numbers are not read from texts, nor truth from numbers; NaN and infinities are refused."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False, protected_namespaces=())

    @property
    def others(self) -> dict[str, Any]:
        """The fields that are not listed."""
        return self.model_extra or {}


class StreamOptions(Fields):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # padding against traffic analysis; there is none


class Body(Fields):
    """What both endpoints take. None stands for the default, as in OpenAI's API."""

    model: str
    max_tokens: int | None = Field(None, ge=1, le=COUNT)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=0, le=COUNT)
    min_p: float | None = Field(None, ge=0, le=1)
    n: int | None = Field(None, ge=1, le=COUNT)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=STOPS)] | None = None
    seed: int | None = Field(None, ge=-(2**63), le=2**64 - 1)
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[str, Bias] | None = None
    response_format: dict[str, Any] | None = None
    watch: bool | None = None  # the tree of each step, in a stream

    @field_validator("logit_bias", mode="before")
    @classmethod
    def _not_too_many(cls, value: Any) -> Any:
        if isinstance(value, dict) and len(cast("dict[str, Any]", value)) > MEMBERS:
            raise ValueError(f"it may have at most {MEMBERS} tokens")
        return value

    @property
    def copies(self) -> int:
        return self.n or 1

    @property
    def texts(self) -> int:
        """How many texts the answer has."""
        return self.copies

    @property
    def is_sampled(self) -> bool:
        return self.temperature is None or self.temperature > 0

    @property
    def counts_usage(self) -> bool:
        """Whether a stream ends with the numbers of tokens."""
        return bool(self.stream_options and self.stream_options.include_usage)


class CompletionBody(Body):
    """A body of /v1/completions."""

    prompt: Prompts
    logprobs: int | None = Field(None, ge=0, le=5)

    @property
    def texts(self) -> int:
        return self.copies * len(self.prompt)

    @field_validator("prompt", mode="plain")
    @classmethod
    def _several(cls, value: Any) -> Prompts:
        """Returns a list of texts, or of lists of token ids, from one of either or a list of them."""
        if isinstance(value, str):
            return [value]
        given = list(cast("list[Any]", value)) if isinstance(value, list) else []
        if given and all(type(each) is int for each in given):
            return [given]
        if given and all(isinstance(each, str) for each in given):
            return given
        if given and all(isinstance(each, list) and each and all(type(one) is int for one in each) for each in given):
            return given
        raise ValueError("must be a text, token ids, or a list of either, and not be empty")


class Part(Fields):
    type: str
    text: str | None = None


class CalledFunction(Fields):
    name: str
    arguments: str


class Called(Fields):
    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(Fields):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[Part], Members] | None = None
    name: str | None = None
    tool_calls: Annotated[list[Called], Members] | None = None
    tool_call_id: str | None = None


class Function(Fields):
    name: str = Field(pattern=r"^[\w.-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Fields):
    type: Literal["function"]
    function: Function


class ChatBody(Body):
    """A body of /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MEMBERS)]
    max_completion_tokens: int | None = Field(None, ge=1, le=COUNT)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=TOP)
    tools: Annotated[list[Tool], Members] | None = None
    tool_choice: str | dict[str, Any] | None = None


B = TypeVar("B", bound=Body)


def read_body(kind: type[B], body: bytes) -> B:
    """Returns a checked body. Raises `RefusedError` that names the field."""
    try:
        read = kind.model_validate_json(body)
    except ValidationError as error:
        raise _refused(error) from error
    check_others(read.others)
    return read


def _refused(error: ValidationError) -> RefusedError:
    """Returns what is wrong with the first field that is."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    said = first["msg"].removeprefix("Value error, ")
    if first["type"] == "json_invalid":
        return RefusedError(f"the body is not JSON: {said.removeprefix('Invalid JSON: ')}", None, "invalid_json")
    place = _place(first["loc"])
    if not place:
        return RefusedError("the body must be a JSON object", None, "invalid_json")
    if first["type"] == "missing":
        return RefusedError(f"{place} is missing: give it", place, "missing_required_parameter")
    said = re.sub(r"^[A-Z]\w+ should ", "must ", said.replace(" after validation", ""))
    if not said.startswith("must "):
        said = f"cannot be used: {said[:1].lower()}{said[1:]}"
    return RefusedError(f"{place} {said}", place, "invalid_value")


def _place(names: Sequence[str | int]) -> str:
    """Returns `messages[0].content` for ("messages", 0, "content"); kinds of a union's members are left out."""
    kept = [each for each in names if not (isinstance(each, str) and KIND.fullmatch(each))]
    found = "".join(f"[{each}]" if isinstance(each, int) else f".{each}" for each in kept)
    return found.lstrip(".")[:100]
