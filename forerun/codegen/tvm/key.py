"""The key of a compiled step's code: everything that the code depends on."""

import hashlib
from pathlib import Path

from forerun.codegen.tvm.target import Machine
from forerun.codegen.tvm.untyped import tvm

SOURCES = Path(__file__).parent


def key_of(machine: Machine) -> str:
    """Returns the key of everything a compiled step depends on, the templates' own sources included."""
    digest = hashlib.sha256()
    for text in (tvm.__version__, str(machine)):
        digest.update(text.encode() + b"\0")
    for path in sorted((*SOURCES.glob("*.py"), *SOURCES.parent.glob("loops/*.py"))):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:32]
