"""The page of a report: the template, the style, the scripts and the data in one file that needs no network."""

from __future__ import annotations

import json
import re
from functools import cache
from importlib.resources import files

from forerun.report.data import Report

LIBRARIES = ("vendor/d3.min.js", "vendor/plot.umd.min.js")
SCRIPTS = ("base", "code", "pipeline", "step", "charts", "replay", "compare", "page")
"""In the order in which they are run."""


def page(report: Report) -> str:
    """Returns the page of one report."""
    return _assembled(f"{report.about.model} · forerun", report.text())


def comparison_page(first: Report, second: Report, names: tuple[str, str]) -> str:
    """Returns the page that compares two reports, which are called by these names."""
    data = f'{{"kind":"comparison","names":{json.dumps(names)},"reports":[{first.text()},{second.text()}]}}'
    return _assembled(f"{names[0]} and {names[1]} · forerun", data)


def _assembled(title: str, data: str) -> str:
    parts = {
        "TITLE": title.replace("&", "&amp;").replace("<", "&lt;"),
        "STYLE": style(),
        "LIBRARIES": script(*LIBRARIES),
        "SCRIPTS": script(*(f"scripts/{name}.js" for name in SCRIPTS)),
        "DATA": data.replace("<", "\\u003c"),  # neither </script> nor <!-- ends the element
    }
    return re.sub(r"{{([A-Z]+)}}", lambda place: parts[place[1]], _read("page.html"))


def style() -> str:
    return _read("style.css")


def script(*names: str) -> str:
    """Returns some scripts one after another."""
    return "\n".join(map(_read, names))


@cache
def _read(name: str) -> str:
    return (files("forerun.report") / name).read_text(encoding="utf-8")
