"""What constrains a text, as a caller says it, and its hooks for one model's tokens."""

import json
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from forerun.errors import InvalidOptionError, first_sentence
from forerun.runtime.hooks.grammar import GrammarHook, reason

if TYPE_CHECKING:
    from llguidance import LLTokenizer


@dataclass(frozen=True)
class JsonSchema:
    """JSON text that a schema describes.

    schema      a mapping, its JSON text, or a class with pydantic's `model_json_schema`; `{}` is any JSON value,
                `{"type": "object"}` any object. Properties come in the schema's order.
    compact     whether white space is fixed, one blank after each comma and colon: texts are shorter, and more of
                their tokens are certain

    Raises `InvalidOptionError` if it is no JSON. What a schema may hold is llguidance's to say; the rest is refused.
    """

    schema: Any
    compact: bool = False

    def __post_init__(self) -> None:
        given: Any = self.schema
        if callable(method := getattr(given, "model_json_schema", None)):
            given = method()
        try:
            schema: object = json.loads(given if isinstance(given, str) else json.dumps(given))
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidOptionError(f"a JSON schema must be JSON: this is not ({first_sentence(error)})") from error
        if not isinstance(schema, Mapping):
            raise InvalidOptionError(f"a JSON schema must be an object, not {json.dumps(schema)[:80]}")
        object.__setattr__(self, "schema", json.dumps(schema))


@dataclass(frozen=True)
class Regex:
    """Text that matches a regular expression from its first to its last character, in the syntax of Rust's `regex`."""

    pattern: str

    def __post_init__(self) -> None:
        _require_text("a regular expression", self.pattern)


@dataclass(frozen=True)
class Lark:
    """Text of a context-free grammar, in llguidance's form of Lark's syntax; it begins with the rule `start`."""

    grammar: str

    def __post_init__(self) -> None:
        _require_text("a grammar", self.grammar)


Grammar = JsonSchema | Regex | Lark


class Grammars:
    """Makes hooks over one model's tokens. The tokenizer is read once, on first use, which takes some 0.2 s."""

    def __init__(self, tokenizer: Any, vocabulary: int, eos_token_ids: Iterable[int] = ()) -> None:
        self._tokenizer, self._vocabulary, self._eos = tokenizer, vocabulary, sorted(eos_token_ids)
        self._lock = threading.Lock()
        self._read: LLTokenizer | None = None

    def hook(self, grammar: object, stop: frozenset[int], least: int = 0) -> GrammarHook:
        """Returns a hook for a text that the tokens `stop` end, after at least `least` new tokens.

        Raises `InvalidOptionError` without llguidance or a tokenizer that it can read, and for a grammar that is wrong.
        """
        if not isinstance(grammar, Grammar):
            raise InvalidOptionError(
                f"grammar must be one of forerun.hooks' JsonSchema, Regex and Lark, not {grammar!r}"
            )
        try:
            from llguidance import LLMatcher
        except ImportError as error:
            raise InvalidOptionError(
                'a grammar needs llguidance, which is not installed: run `pip install "forerun[grammar]"`'
            ) from error
        text: str
        match grammar:
            case JsonSchema(schema, compact):
                what, text = "JSON schema", _of_schema(schema, SPACES[compact])
            case Regex(pattern):
                what, text = "regular expression", LLMatcher.grammar_from_regex(pattern)
            case Lark(source):
                what, text = "grammar", LLMatcher.grammar_from_lark(source)
        tokenizer = self.tokens()
        make = partial(LLMatcher, tokenizer, text, log_level=0)
        matcher = make()
        if matcher.is_error():
            raise InvalidOptionError(f"the {what} cannot be used: {reason(matcher.get_error())}")
        for warning in matcher.get_grammar_warnings():
            warnings.warn(f"the {what}: {reason(warning)}", UserWarning, stacklevel=5)
        return GrammarHook(matcher, make, tokenizer, self._vocabulary, stop, least)

    def tokens(self) -> "LLTokenizer":
        """Returns the tokenizer in llguidance's form."""
        with self._lock:
            if self._read is None:
                self._read = read_tokenizer(self._tokenizer, self._vocabulary, self._eos)
            return self._read


SPACES: dict[bool, Any] = {
    False: {},
    True: {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "},
}


def _of_schema(schema: str, options: Any) -> str:
    """Returns the grammar of a schema. Raises `InvalidOptionError` for what only some readers of JSON take."""
    from llguidance import LLMatcher

    try:
        return LLMatcher.grammar_from_json_schema(schema, overrides=options)
    except ValueError as error:  # such as for NaN, numbers that are too large, and many levels
        raise InvalidOptionError(f"the JSON schema cannot be used: {first_sentence(error)}") from error


def read_tokenizer(tokenizer: Any, vocabulary: int, eos_token_ids: list[int]) -> "LLTokenizer":
    """Returns llguidance's form of a fast tokenizer of transformers, or of one of tokenizers."""
    from llguidance import LLTokenizer

    if tokenizer is None:
        raise InvalidOptionError("a grammar needs the model's tokenizer, which is not beside it")
    inner = getattr(tokenizer, "backend_tokenizer", tokenizer)
    write: Callable[[], str] | None = getattr(inner, "to_str", None)
    if write is None:
        raise InvalidOptionError(
            f"a grammar needs a fast tokenizer of transformers, or one of tokenizers, not {type(tokenizer).__name__}"
        )
    eos = eos_token_ids or getattr(tokenizer, "eos_token_id", None)
    size = max(vocabulary, int(inner.get_vocab_size(with_added_tokens=True)))
    try:
        return LLTokenizer(_without_padding(write()), n_vocab=size, eos_token=eos)
    except ValueError as error:
        raise InvalidOptionError(
            f"llguidance cannot read the tokenizer {type(tokenizer).__name__} ({first_sentence(error)})"
        ) from error


def _without_padding(text: str) -> str:
    """Returns a tokenizer's JSON without padding and truncation, which would change what text is cut into."""
    return json.dumps(json.loads(text) | {"padding": None, "truncation": None})


def _require_text(what: str, given: object) -> None:
    if not isinstance(given, str) or not given:
        raise InvalidOptionError(f"{what} must be a text that is not empty, not {given!r}")
