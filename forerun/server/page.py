"""The page at /: for people who type, and watch the trees. One file, which loads nothing."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from functools import cache
from importlib.resources import files

from forerun.report.page import assembled

SCRIPTS = ("base", "replay")
"""Of the report, in the order in which they are run."""


def served_page(model: str) -> tuple[str, str]:
    """Returns the page for a model of this name, and the Content-Security-Policy that it needs."""
    data = json.dumps({"model": model})
    page = assembled(
        f"{model} · forerun", "conversation", data, SCRIPTS, style=_read("page.css"), script=_read("page.js")
    )
    hashes = " ".join(f"'sha256-{_digest(body)}'" for body in re.findall(r"<script>(.*?)</script>", page, re.DOTALL))
    return page, (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@cache
def _read(name: str) -> str:
    return (files("forerun.server") / name).read_text(encoding="utf-8")
