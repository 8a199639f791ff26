"""Test settings: compiled kernels are shared by a run's workers and forgotten afterwards."""

import os
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "FORERUN_CACHE_DIR" not in os.environ:
    # Workers inherit the environment of the process that starts them, so this folder is made once per run.
    _folder = tempfile.TemporaryDirectory(prefix="forerun-tests-")
    os.environ["FORERUN_CACHE_DIR"] = _folder.name
