"""The C compiler of this machine."""

from __future__ import annotations

import os
import shutil


def c_compiler() -> str | None:
    """Returns the C compiler: `$CC`, or cc; None where there is none."""
    return shutil.which(os.environ.get("CC", "cc"))
