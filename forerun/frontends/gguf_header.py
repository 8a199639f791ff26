"""The header of a GGUF file: its metadata and the places of its tensors, checked against the file's size.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import hashlib
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

from forerun.errors import CorruptFileError, UnsupportedOperationError
from forerun.frontends.gguf_place import MAGIC

VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
BOOL, STRING, ARRAY = 7, 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", BOOL: "?", 10: "Q", 11: "q", 12: "d"}
MAX_STRINGS = 1 << 24
"""Strings of an array: more than any vocabulary has, so that a damaged count is not walked through the weights."""
MAX_DIMENSIONS = 4


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of the file, in the order of torch's dimensions."""

    name: str
    shape: tuple[int, ...]
    encoding: GGMLQuantizationType
    row_bytes: int  # bytes of one row of shape[-1] elements
    start: int  # from the beginning of the file
    path: Path  # the file that holds it

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape[:-1]) * self.row_bytes

    @property
    def end(self) -> int:
        """The offset of the first byte after the tensor."""
        return self.start + self.size

    def stored(self) -> NDArray[np.uint8]:
        """The tensor as it is stored, `uint8[*shape[:-1], row_bytes]`, mapped copy-on-write from its file."""
        mapped = np.memmap(self.path, np.uint8, "c", self.start, (self.size,))
        return mapped.reshape(*self.shape[:-1], self.row_bytes)


@dataclass(frozen=True)
class Strings:
    """An array of strings, decoded on demand: a vocabulary is long, and reading the weights does not need it."""

    content: memoryview
    start: int
    count: int

    def __len__(self) -> int:
        return self.count

    def decode(self) -> list[str]:
        """All strings. Raises `UnicodeDecodeError` if the bytes are not UTF-8."""
        found: list[str] = []
        position = self.start
        for _ in range(self.count):
            (length,) = struct.unpack_from("<Q", self.content, position)
            position += 8
            found.append(str(self.content[position : position + length], "utf-8"))
            position += length
        return found


@dataclass(frozen=True)
class GgufHeader:
    """A whole model's header: every tensor lies inside its file, in no other tensor's bytes, under a name of its own.

    Metadata values are numbers, booleans, strings, `NDArray` and `Strings`.
    """

    path: Path
    metadata: dict[str, Any]
    tensors: tuple[TensorEntry, ...]
    digest: str  # of the header's bytes

    @property
    def architecture(self) -> str | None:
        """llama.cpp's name for the architecture, if the file gives one."""
        name = self.metadata.get("general.architecture")
        return name if isinstance(name, str) else None


def read_header(path: Path) -> GgufHeader:
    """Parse one file's header.

    Raises `CorruptFileError` if the file is truncated, damaged or not a GGUF, and `UnsupportedOperationError` for an
    encoding that the gguf package does not know.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        magic = file.read(len(MAGIC))
    if magic != MAGIC:
        raise CorruptFileError(f"{path} does not begin with the GGUF magic bytes: it is damaged or not a GGUF file.")
    reader = _Reader(np.memmap(path, dtype=np.uint8, mode="r").data, path)
    reader.position = len(MAGIC)
    version = reader.scalar("I")
    if version not in VERSIONS:
        raise CorruptFileError(f"{path} is GGUF version {version}: convert it to version 3 (little-endian).")
    tensor_count, metadata_count = reader.scalar("Q"), reader.scalar("Q")
    metadata = _read_metadata(reader, metadata_count)
    table = [_read_entry(reader) for _ in reader.counted(tensor_count, "tensors", smallest=24)]
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1):
        raise CorruptFileError(f"{path} declares an alignment of {alignment!r}: download the file again.")
    base = math.ceil(reader.position / alignment) * alignment
    for name, _, _, offset in table:
        if offset % alignment:
            raise reader.damaged(f"places {name} at offset {offset}, which is not a multiple of {alignment}")
    tensors = tuple(_placed(name, shape, encoding, base + offset, path) for name, shape, encoding, offset in table)
    expected = max((entry.end for entry in tensors), default=base)
    if expected > size:
        raise CorruptFileError(
            f"{path} is cut short: its header promises {expected:,} bytes, but it has {size:,}; download it again."
        )
    _check_apart(tensors, reader)
    return GgufHeader(path, metadata, tensors, hashlib.sha256(reader.content[: reader.position]).hexdigest())


class _Reader:
    """A position in the header; every read stays inside the file."""

    def __init__(self, content: memoryview, path: Path) -> None:
        self.content = content
        self.path = path
        self.position = 0

    def unpack(self, layout: str) -> tuple[Any, ...]:
        return struct.unpack_from(f"<{layout}", self.content, self.advance(struct.calcsize(f"<{layout}")))

    def scalar(self, layout: str) -> Any:
        return self.unpack(layout)[0]

    def string(self) -> str:
        length = self.scalar("Q")
        start = self.advance(length)
        return bytes(self.content[start : start + length]).decode("utf-8", errors="replace")

    def name(self, what: str) -> str:
        """A string that is a name, and so must be valid."""
        name = self.string()
        if not name or not name.isprintable() or "\N{REPLACEMENT CHARACTER}" in name:
            raise self.damaged(f"holds a {what} without a readable name")
        return name

    def value(self, kind: int) -> Any:
        if kind == BOOL:
            stored = self.scalar("B")
            if stored > 1:
                raise self.damaged(f"stores {stored} as a boolean")
            return bool(stored)
        if kind in SCALARS:
            return self.scalar(SCALARS[kind])
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            return self.array(*self.unpack("IQ"))
        raise self.damaged(f"holds a metadata value of the unknown type {kind}")

    def array(self, kind: int, count: int) -> "NDArray[Any] | Strings":
        if kind in SCALARS:
            layout = np.dtype(f"<{SCALARS[kind]}")
            start = self.advance(count * layout.itemsize)
            return np.frombuffer(self.content, layout, count, start)
        if kind != STRING:
            raise self.damaged(f"holds a metadata array of the type {kind}, which no key has")
        start = self.position
        for _ in self.counted(count, "strings in an array", smallest=8, most=MAX_STRINGS):
            self.advance(self.scalar("Q"))
        return Strings(self.content, start, count)

    def counted(self, count: int, what: str, smallest: int, most: int | None = None) -> range:
        """`range(count)`, if the file has room for `count` items of at least `smallest` bytes each."""
        room = (len(self.content) - self.position) // smallest
        if count > room or (most is not None and count > most):
            raise self.damaged(f"counts {count:,} {what}, more than it has room for")
        return range(count)

    def advance(self, size: int) -> int:
        start = self.position
        if start + size > len(self.content):
            raise self.damaged(f"ends inside its header, {len(self.content):,} bytes long")
        self.position = start + size
        return start

    def damaged(self, fault: str) -> CorruptFileError:
        return CorruptFileError(f"{self.path} {fault}: it is cut or damaged; download it again.")


def _read_metadata(reader: _Reader, count: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for _ in reader.counted(count, "metadata keys", smallest=13):
        key = reader.name("metadata key")
        if key in metadata:
            raise reader.damaged(f"gives {key} twice")
        metadata[key] = reader.value(reader.scalar("I"))
    return metadata


def _read_entry(reader: _Reader) -> tuple[str, tuple[int, ...], int, int]:
    name = reader.name("tensor")
    count = reader.scalar("I")
    if not 1 <= count <= MAX_DIMENSIONS:
        raise reader.damaged(f"gives {name} {count} dimensions")
    dimensions = reader.unpack(f"{count}Q")  # the fastest-moving first
    encoding, offset = reader.unpack("IQ")
    return name, tuple(reversed(dimensions)), encoding, offset


def _placed(name: str, shape: tuple[int, ...], encoding: int, start: int, path: Path) -> TensorEntry:
    try:
        kind = GGMLQuantizationType(encoding)
    except ValueError as error:
        raise UnsupportedOperationError(
            f"{path} stores {name} in the unknown encoding {encoding}: update the gguf package, or requantize the file."
        ) from error
    block_elements, block_bytes = GGML_QUANT_SIZES[kind]
    if not all(shape) or shape[-1] % block_elements:
        raise CorruptFileError(f"{path} gives {name} the impossible shape {list(shape)}: download it again.")
    return TensorEntry(name, shape, kind, shape[-1] // block_elements * block_bytes, start, path)


def _check_apart(tensors: Sequence[TensorEntry], reader: _Reader) -> None:
    """Raise `CorruptFileError` if two tensors have the same name, or share bytes."""
    names: set[str] = set()
    for entry in tensors:
        if entry.name in names:
            raise reader.damaged(f"holds two tensors named {entry.name}")
        names.add(entry.name)
    for before, after in pairwise(sorted(tensors, key=lambda entry: entry.start)):
        if before.end > after.start:
            raise reader.damaged(f"places {after.name} in the bytes of {before.name}")
