"""Models that gguf-split has split into several files: opened by the first, with the tensors of all."""

import hashlib
import re
from dataclasses import replace
from pathlib import Path

from forerun.errors import CorruptFileError, NotAModelError, SourceNotFoundError
from forerun.frontends.gguf_header import GgufHeader, read_header

NUMBER, COUNT, TENSORS = "split.no", "split.count", "split.tensors.count"
PART = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)
"""How gguf-split names part `number`, from 1, of `count`."""


def read_model(path: Path) -> GgufHeader:
    """The header of a file, or of all parts of a split model by its first.

    Raises what `read_header` raises, `SourceNotFoundError` for a part that is not in the first one's folder, and
    `NotAModelError` for a part other than the first.
    """
    first = read_header(path)
    number, count = (_number(first, key) for key in (NUMBER, COUNT))
    if count <= 1:
        return first
    named = PART.fullmatch(path.name)
    if number != 0:
        begin = f", {_part(path, named['stem'], 1, count).name}" if named else ""
        raise NotAModelError(f"{path} is part {number + 1} of {count} of a model: give the first part{begin}.")
    if named is None or int(named["number"]) != 1 or int(named["count"]) != count:
        raise NotAModelError(
            f"{path} is the first of {count} parts of a model, but its name does not end in -00001-of-{count:05}.gguf: "
            f"give all parts the names that gguf-split gave them, or join them with gguf-split --merge."
        )
    parts = [first]
    for index in range(1, count):
        parts.append(_read_part(_part(path, named["stem"], index + 1, count), index, count))
    return _joined(parts)


def _part(path: Path, stem: str, number: int, count: int) -> Path:
    return path.with_name(f"{stem}-{number:05}-of-{count:05}.gguf")


def _number(header: GgufHeader, key: str, absent: int = 0) -> int:
    value = header.metadata.get(key, absent)
    if type(value) is not int or value < 0:
        raise CorruptFileError(f"{header.path} gives {key} the value {value!r}: download the file again.")
    return value


def _read_part(path: Path, index: int, count: int) -> GgufHeader:
    if not path.is_file():
        raise SourceNotFoundError(f"{path}, part {index + 1} of {count} of the model, does not exist: download it too.")
    part = read_header(path)
    if _number(part, NUMBER) != index or _number(part, COUNT) != count:
        raise CorruptFileError(
            f"{path} says that it is part {_number(part, NUMBER) + 1} of {_number(part, COUNT)}, but its name says "
            f"{index + 1} of {count}: download the parts again."
        )
    return part


def _joined(parts: list[GgufHeader]) -> GgufHeader:
    first = parts[0]
    tensors = tuple(entry for part in parts for entry in part.tensors)
    held: dict[str, Path] = {}
    for entry in tensors:
        if entry.name in held:
            raise CorruptFileError(
                f"{entry.path} and {held[entry.name]} both hold {entry.name}: download the parts again."
            )
        held[entry.name] = entry.path
    promised = _number(first, TENSORS, absent=len(tensors))
    if promised != len(tensors):
        raise CorruptFileError(
            f"{first.path} promises {promised:,} tensors in {len(parts)} parts, but they hold {len(tensors):,}: "
            f"download the parts again."
        )
    digest = hashlib.sha256("".join(part.digest for part in parts).encode()).hexdigest()
    return replace(first, tensors=tensors, digest=digest)
