"""How a GGUF file is known; this imports nothing, for starts that open no model."""

from pathlib import Path

MAGIC = b"GGUF"
"""Its first bytes."""


def is_gguf(path: Path) -> bool:
    """Whether the file is a GGUF by its first bytes, or is named as one."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC or path.suffix == ".gguf"
