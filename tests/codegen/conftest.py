"""The compiled code of these tests goes to a folder of its own."""

import pytest


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FORERUN_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield
