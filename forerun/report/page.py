"""Pages that need no network: the template, the style, the scripts and the data in one file."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

from forerun.report.data import Report

LIBRARIES = ("vendor/d3.min.js", "vendor/plot.umd.min.js")
SCRIPTS = ("base", "code", "pipeline", "step", "charts", "replay", "compare", "page")
"""In the order in which they are run."""
CONTROLS = """  <nav id="nav" aria-label="Sections"></nav>
  <button id="theme" type="button" aria-pressed="false">Dark</button>"""


def page(report: Report) -> str:
    """Returns the page of one report."""
    return _assembled(f"{report.about.model} · forerun", report.text())


def comparison_page(first: Report, second: Report, names: tuple[str, str]) -> str:
    """Returns the page that compares two reports, which are called by these names."""
    data = f'{{"kind":"comparison","names":{json.dumps(names)},"reports":[{first.text()},{second.text()}]}}'
    return _assembled(f"{names[0]} and {names[1]} · forerun", data)


def _assembled(title: str, data: str) -> str:
    return assembled(title, "report", data, SCRIPTS, controls=CONTROLS)


def assembled(
    title: str,
    subject: str,
    data: str,
    scripts: Sequence[str],
    style: str = "",
    script: str = "",
    controls: str = "",
) -> str:
    """Returns a page of JSON `data` and some of the scripts here.

    subject         what its main part is
    style, script   what comes after those here
    controls        what its bar holds, as HTML
    """
    parts = {
        "TITLE": title.replace("&", "&amp;").replace("<", "&lt;"),
        "SUBJECT": subject,
        "CONTROLS": controls,
        "STYLE": _read("style.css") + style,
        "LIBRARIES": "\n".join(map(_read, LIBRARIES)),
        "SCRIPTS": "\n".join(_read(f"scripts/{name}.js") for name in scripts) + script,
        "DATA": data.replace("<", "\\u003c"),  # neither </script> nor <!-- ends the element
    }
    return re.sub(r"{{([A-Z]+)}}", lambda place: parts[place[1]], _read("page.html"))


@cache
def _read(name: str) -> str:
    return (files("forerun.report") / name).read_text(encoding="utf-8")
