"""The key of a compiled step's code: everything that the code depends on."""

import hashlib
from pathlib import Path

from forerun.codegen.tvm.target import Machine
from forerun.codegen.tvm.untyped import tvm

SOURCES = Path(__file__).parent


def source_digest() -> str:
    """Returns a digest of the templates' own sources: changing a template changes the key."""
    digest = hashlib.sha256()
    for path in sorted((*SOURCES.glob("*.py"), *SOURCES.parent.glob("loops/*.py"))):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def key_of(machine: Machine) -> str:
    """Returns the key of everything a compiled step depends on."""
    digest = hashlib.sha256()
    for text in (tvm.__version__, str(machine), source_digest()):
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()[:32]
