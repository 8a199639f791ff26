"""Test settings: compiled kernels are shared by a run's workers and then forgotten; which tests are slow; a browser."""

import os
import re
import tempfile
from collections.abc import Iterator
from fnmatch import translate
from pathlib import Path
from typing import Any

import pytest

pytest.register_assert_rewrite("tests.contract")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "FORERUN_CACHE_DIR" not in os.environ:
    # Workers inherit the environment of the process that starts them, so this folder is made once per run.
    _folder = tempfile.TemporaryDirectory(prefix="forerun-tests-")
    os.environ["FORERUN_CACHE_DIR"] = _folder.name

FORMATS = ("q4_1", "q5_0", "q5_1", "q2_k", "q3_k", "q5_k", "f16")
_lines = Path(__file__).with_name("slow.txt").read_text(encoding="utf-8").splitlines()
_patterns = {line.replace("{FORMAT}", each) for line in _lines if line and line[0] != "#" for each in FORMATS}
SLOW = re.compile("|".join(translate(each.replace("[", "[[]")) for each in sorted(_patterns)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if SLOW.match(item.nodeid.rpartition("/")[2]):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A browser. Its event loop runs in this thread, so it ends with the module: other tests start their own."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed (forerun[report-tests])"
    )
    from tests.examples.devtools import executable

    path = executable()
    if path is None:
        pytest.skip("there is no Chromium on this machine")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=str(path), args=["--no-sandbox"])
        yield browser
        browser.close()
