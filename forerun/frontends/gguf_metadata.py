"""The metadata of a GGUF file's architecture, each value checked when it is read."""

import math
from typing import Any

import numpy as np

from forerun.errors import CorruptFileError, NotAModelError, UnsupportedOperationError
from forerun.frontends.gguf_header import GgufHeader, Strings
from forerun.frontends.gguf_keys import ARCHITECTURES, NEUTRAL, Architecture, Key, Kind

LARGEST = 2**31
"""Counts are below: what llama.cpp's integers hold."""


class Keys:
    """The metadata of a file's architecture, without the prefix, each value checked against its kind."""

    def __init__(self, header: GgufHeader) -> None:
        known = ARCHITECTURES.get(header.architecture or "")
        if known is None:
            raise NotAModelError(
                f"{header.path} holds a {header.architecture}, which is not a decoder that forerun reads from "
                f"GGUF files ({', '.join(ARCHITECTURES)}): give the directory of the original model."
            )
        self.header = header
        self.architecture: Architecture = known
        self.prefix = f"{header.architecture}."
        self.values = {
            name.removeprefix(self.prefix): value
            for name, value in header.metadata.items()
            if name.startswith(self.prefix)
        }
        for name, key in known.keys.items():
            if name not in self.values and key.otherwise in self.values:
                self.values[name] = self.values.pop(key.otherwise)
        self.tensors = {entry.name: entry for entry in header.tensors}

    def get(self, name: str, absent: Any = None) -> Any:
        """A key's value, one for all layers, or `absent`."""
        if name not in self.values:
            return absent
        key = self.architecture.keys.get(name) or Key(Kind.ANY)
        value = self.values[name]
        if key.per_layer and isinstance(value, np.ndarray):
            value = self._uniform(name, value.tolist())
        if not is_of(key.kind, value):
            raise self.damaged(name, f"is {shown(value)}, but must be {key.kind.value}")
        return value

    def count(self, name: str) -> int:
        """A required positive integer."""
        return self.required(name)

    def required(self, name: str) -> Any:
        """A required value."""
        if name not in self.values:
            raise NotAModelError(
                f"{self.header.path} lacks {self.prefix}{name}, which a {self.header.architecture} needs: "
                f"convert the model again."
            )
        return self.get(name)

    def check(self, name: str) -> None:
        """Raise unless the key is read, or its value changes nothing."""
        if name in self.architecture.keys:
            self.get(name)
            return
        value = self.values[name]
        neutral = (*self.architecture.neutral.get(name, ()), *NEUTRAL.get(name, ()))
        scalar = isinstance(value, (bool, int, float, str))
        if scalar and any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in neutral):
            return
        if name == "embedding_length_out" and value == self.values.get("embedding_length"):
            return
        raise self.unsupported(name)

    def unsupported(self, name: str, why: str | None = None) -> UnsupportedOperationError:
        """The error for a known key with a value that transformers' model does not follow."""
        reason = why or f"which transformers' {self.architecture.model_type} does not follow"
        return UnsupportedOperationError(
            f"{self.header.path} sets {self.prefix}{name} = {shown(self.values.get(name))}, {reason}, so its text "
            f"would differ: give the directory of the original model."
        )

    def damaged(self, name: str, fault: str) -> CorruptFileError:
        """The error for an impossible value."""
        return CorruptFileError(f"{self.header.path}: {self.prefix}{name} {fault}; download the file again.")

    def _uniform(self, name: str, values: list[Any]) -> Any:
        layers = self.values.get("block_count")
        if len(values) != layers:
            raise self.damaged(name, f"lists {len(values)} values for {layers} layers")
        if len(set(values)) > 1:
            raise self.unsupported(name, "which differs between layers")
        return values[0]


def is_of(kind: Kind, value: Any) -> bool:
    """Whether a value is of its kind."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    match kind:
        case Kind.COUNT:
            return type(value) is int and 0 < value < LARGEST
        case Kind.SIZE:
            return type(value) is int and 0 <= value < LARGEST
        case Kind.NUMBER:
            return number and value > 0
        case Kind.REAL:
            return number
        case Kind.FLAG:
            return isinstance(value, bool)
        case Kind.TEXT:
            return isinstance(value, str)
        case Kind.ANY:
            return True


def shown(value: Any) -> str:
    """A value as text for a sentence."""
    if isinstance(value, (np.ndarray, Strings)):
        return f"a list of {len(value)}"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
