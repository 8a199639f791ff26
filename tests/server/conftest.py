"""One server for a module's tests."""

from collections.abc import Iterator

import pytest

pytest.importorskip("starlette")

from tests.server.served import Served, compiled, running


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with running(compiled()) as found:
        yield found
        assert found.idle(), "a test has left a text behind"
