"""Test settings: compiled kernels are shared by a run's workers and forgotten afterwards; which tests are slow."""

import os
import tempfile
from fnmatch import fnmatchcase

import pytest

pytest.register_assert_rewrite("tests.contract")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "FORERUN_CACHE_DIR" not in os.environ:
    # Workers inherit the environment of the process that starts them, so this folder is made once per run.
    _folder = tempfile.TemporaryDirectory(prefix="forerun-tests-")
    os.environ["FORERUN_CACHE_DIR"] = _folder.name

SLOW = (
    *("test_states.py::*[triton]", "test_states.py::*[turned-triton*", "test_states.py::*[sums-triton*"),
    *("test_states.py::*[memory-triton-sampled]", "test_device_loop.py::test_the_bits_of_plain_decoding[gpt2-*"),
    *("test_device_loop.py::test_what_is_drawn_is_drawn_alike[sampling1]", "test_triton.py::*[gpt2-float32]"),
    *("test_parts.py::*[gpt_neox]", "test_parts.py::*[falcon]", "test_parts.py::*[bloom]"),
    *("test_part_drafts.py::*[gpt_neox-*", "test_part_drafts.py::*[falcon-*", "test_part_drafts.py::*[bloom-*"),
    *(
        "test_onnx.py::test_a_model_exported_by_tracing_arrives[gemma3_text]",
        "test_c.py::test_tokens_of_the_real_model*",
    ),
    *("test_run_tvm.py::test_the_real_model*", "test_triton.py::test_chunks_give_the_bits_of_single_rows[gemma2-*"),
)
"""Tests that a quicker one beside them stands for; `-m slow` runs them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        name = item.nodeid.rpartition("/")[2]
        if any(fnmatchcase(name, each.replace("[", "[[]")) for each in SLOW):
            item.add_marker(pytest.mark.slow)
