"""One report of a tiny model for all tests here, and its page in a browser."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

import forerun
from forerun.progress import SilentProgress
from forerun.report.data import Report
from forerun.report.page import page
from forerun.report.trace import trace
from forerun.reporting import Given, make_report
from tests.models import FAMILIES, VOCABULARY

PROMPT = [7, 8, 9, 7, 8, 9, 7, 8, 9, 7, 8]


@dataclass(frozen=True)
class Written:
    """The files of a report."""

    model: Path
    page: Path
    data: Path
    trace: Path
    report: Report


def tokenizer() -> PreTrainedTokenizerFast:
    """Some tokens look like HTML."""
    words = {f"w{number}": number for number in range(VOCABULARY - 2)}
    made = Tokenizer(WordLevel({**words, "</script>": VOCABULARY - 2, "<!--": VOCABULARY - 1}, unk_token="w0"))
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="w0")


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    folder = tmp_path_factory.mktemp("report")
    FAMILIES["llama"](num_hidden_layers=4, tie_word_embeddings=True).save_pretrained(folder / "model")
    tokenizer().save_pretrained(folder / "model")
    strategy = forerun.TreeSpec(policy=forerun.Fixed(rows=8))  # whose trees do not depend on the clock
    given = Given(str(folder / "model"), strategy, max_length=128, prompt=PROMPT, max_new_tokens=40)
    report = make_report(given, SilentProgress())
    files = Written(folder / "model", folder / "report.html", folder / "report.json", folder / "trace.json", report)
    files.page.write_text(page(report), encoding="utf-8")
    files.data.write_text(report.text(), encoding="utf-8")
    files.trace.write_text(trace(report), encoding="utf-8")
    return files


@dataclass
class Opened:
    """A page in the browser, and what it has asked for and complained of."""

    page: Any
    requests: list[str]
    errors: list[str]
    seconds: float


@pytest.fixture
def opened(chromium: Any) -> Iterator[Any]:
    """Opens pages; no page reaches the network, complains, or outlives its test."""
    import time

    made: list[Opened] = []

    def open_page(path: Path, scheme: str = "light") -> Opened:
        page = chromium.new_page(viewport={"width": 1280, "height": 720}, color_scheme=scheme)
        found = Opened(page, [], [], 0.0)
        made.append(found)

        def refuse(route: Any) -> None:
            if route.request.url.startswith("file:"):
                route.continue_()
            else:
                found.requests.append(route.request.url)
                route.abort()

        page.route("**/*", refuse)
        page.on("console", lambda message: found.errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: found.errors.append(str(error)))
        began = time.perf_counter()
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-ready]")
        found.seconds = time.perf_counter() - began
        return found

    yield open_page
    for each in made:
        assert each.requests == []
        assert each.errors == []
        each.page.close()
