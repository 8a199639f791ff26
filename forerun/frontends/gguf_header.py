"""The header of a GGUF file: its metadata and where its tensors lie, checked against the file's size.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import hashlib
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

from forerun.errors import CorruptFileError, UnsupportedOperationError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
STRING, ARRAY = 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of the file, in the order of torch's dimensions."""

    name: str
    shape: tuple[int, ...]
    encoding: GGMLQuantizationType
    row_bytes: int  # bytes of one row of shape[-1] elements
    start: int  # from the beginning of the file

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape[:-1]) * self.row_bytes


@dataclass(frozen=True)
class GgufHeader:
    """A whole file's header: every tensor lies inside the file."""

    path: Path
    metadata: dict[str, Any]  # arrays of strings are left out
    tensors: tuple[TensorEntry, ...]
    digest: str  # of the header's bytes

    @property
    def architecture(self) -> str | None:
        """llama.cpp's name for the architecture, if the file gives one."""
        name = self.metadata.get("general.architecture")
        return name if isinstance(name, str) else None

    def blocks(self) -> dict[str, NDArray[np.uint8]]:
        """Each tensor as it is stored, `uint8[*shape[:-1], row_bytes]`, mapped copy-on-write from the file."""
        mapped = np.memmap(self.path, dtype=np.uint8, mode="c")
        return {
            entry.name: mapped[entry.start : entry.start + entry.size].reshape(*entry.shape[:-1], entry.row_bytes)
            for entry in self.tensors
        }


def read_header(path: Path) -> GgufHeader:
    """Parse the header; raise `CorruptFileError` when the file is cut or is no GGUF."""
    size = path.stat().st_size
    with path.open("rb") as file:
        magic = file.read(len(MAGIC))
    if magic != MAGIC:
        raise CorruptFileError(f"{path} does not begin with the GGUF magic bytes: it is damaged or no GGUF file.")
    content = np.memmap(path, dtype=np.uint8, mode="r")
    reader = _Reader(content.data, path)
    reader.position = len(MAGIC)
    version = reader.scalar("I")
    if version not in VERSIONS:
        raise CorruptFileError(f"{path} is GGUF version {version}: convert it to version 3 (little-endian).")
    tensor_count, metadata_count = reader.scalar("Q"), reader.scalar("Q")
    metadata: dict[str, Any] = {}
    for _ in range(metadata_count):
        key = reader.string()
        metadata[key] = reader.value(reader.scalar("I"))
    table = [_read_entry(reader) for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment <= 0:
        raise CorruptFileError(f"{path} declares an alignment of {alignment!r}: download the file again.")
    base = math.ceil(reader.position / alignment) * alignment
    tensors = tuple(_placed(name, shape, encoding, base + offset, path) for name, shape, encoding, offset in table)
    expected = max((entry.start + entry.size for entry in tensors), default=base)
    if expected > size:
        raise CorruptFileError(
            f"{path} is cut short: its header promises {expected:,} bytes and it has {size:,}; download it again."
        )
    return GgufHeader(path, metadata, tensors, hashlib.sha256(content[: reader.position].data).hexdigest())


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

    def value(self, kind: int) -> Any:
        if kind in SCALARS:
            return self.scalar(SCALARS[kind])
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            return self.array(*self.unpack("IQ"))
        raise self.damaged(f"holds a metadata value of the unknown type {kind}")

    def array(self, kind: int, count: int) -> list[Any] | None:
        """A list of scalars; strings and nested arrays are skipped, since transformers reads them itself."""
        if kind in SCALARS:
            width = struct.calcsize(SCALARS[kind])
            start = self.advance(count * width)
            return list(struct.unpack_from(f"<{count}{SCALARS[kind]}", self.content, start))
        for _ in range(count):
            if kind == STRING:
                self.advance(self.scalar("Q"))
            else:
                self.value(kind)
        return None

    def advance(self, size: int) -> int:
        start = self.position
        if start + size > len(self.content):
            raise self.damaged(f"ends inside its header, {len(self.content):,} bytes long")
        self.position = start + size
        return start

    def damaged(self, fault: str) -> CorruptFileError:
        return CorruptFileError(f"{self.path} {fault}: it is cut or damaged; download it again.")


def _read_entry(reader: _Reader) -> tuple[str, tuple[int, ...], int, int]:
    name = reader.string()
    dimensions = reader.unpack(f"{reader.scalar('I')}Q")  # the fastest-moving first
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
    if not shape or shape[-1] % block_elements:
        raise CorruptFileError(f"{path} gives {name} the impossible shape {list(shape)}: download it again.")
    return TensorEntry(name, shape, kind, shape[-1] // block_elements * block_bytes, start)
