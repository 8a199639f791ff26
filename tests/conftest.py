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

FORMATS = ("q4_1", "q5_0", "q5_1", "q2_k", "q3_k", "q5_k", "f16")
"""Formats of stored matrices that others beside them stand for."""
SLOW = (
    *("test_states.py::*[triton]", "test_states.py::*[turned-triton*", "test_states.py::*[sums-triton*"),
    *("test_states.py::*[memory-triton-sampled]", "test_states.py::*[windows-triton-sampled]"),
    *(f"test_families.py::*[{name}*" for name in ("roberta", "gptj", "gpt_neox", "mpt", "cohere", "opt", "phi3")),
    *(f"test_families.py::*[{name}*" for name in ("youtu", "flint")),
    *(f"test_experts.py::*[{name}*" for name in ("dots1", "qwen3_moe", "olmoe", "granitemoe", "jetmoe")),
    *("test_device_loop.py::test_the_bits_of_plain_decoding[gpt2-*", "test_device_loop.py::*[gemma2-float32]"),
    *("test_device_loop.py::*[llama-bfloat16]", "test_device_loop.py::test_certify_finds_a_planted_difference[True]"),
    *("test_device_loop.py::test_what_is_drawn_is_drawn_alike[sampling1]", "test_triton.py::*[gpt2-float32]"),
    *("test_triton.py::test_chunks_give_the_bits_of_single_rows[gemma2-*", "test_triton.py::*[llama-bfloat16]"),
    *("test_triton.py::test_trees*[gemma2-float32]", "test_triton.py::test_a_model_on_it*[sampling0]"),
    *("test_parts.py::*[gpt_neox]", "test_parts.py::*[falcon]", "test_parts.py::*[bloom]", "test_parts.py::*[gemma2]"),
    *("test_part_drafts.py::*[gpt_neox*", "test_part_drafts.py::*[falcon-*", "test_part_drafts.py::*[bloom-*"),
    *("test_part_drafts.py::*[gemma2-*", "test_part_drafts.py::*[gpt2-*"),
    *("test_nan.py::test_the_loop_on_the_device_ends_there_too[sampled]", "test_nan.py::*too[filtered]"),
    *(f"test_tvm_experts.py::*-{name}-*" for name in FORMATS),
    *(f"test_tvm_formats.py::*-{name}]" for name in FORMATS),
    *("test_tvm_arithmetics.py::*[no VNNI-q4_1]", "test_tvm_arithmetics.py::*[no AVX-512-q4_1]"),
    *(f"test_torch_mlir.py::test_families_arrive*[{name}-*" for name in ("gpt_neox", "gemma3_text", "qwen3", "bloom")),
    *("test_onnx.py::*arrives[gemma3_text]", "test_onnx.py::test_a_model_exported_by_tracing_arrives[gpt2]"),
    *("test_c.py::test_tokens_of_the_real_model*", "test_run_tvm.py::test_the_real_model*"),
    *("test_native_file.py::test_narrow_products_keep_the_contract", "test_long_contexts.py::*[mistral-131072-cpu]"),
    *("test_prebuilt.py::test_the_second_start_imports_no_compiler['autoregressive']", "test_triton_head.py::*[20]"),
    *("test_tvm_attention.py::test_compiled_code_is_found_again*[True]", "test_threads.py::*compiles[reference]"),
    *("test_ranks.py::*another_version*", "test_ranks.py::*other_weights*", "test_ranks.py::*[layout0-hangs]"),
    *("test_ranks.py::test_four_processes_with_experts*", "test_parts_in_turn.py::*[mixtral]"),
)
"""Tests that a quicker one beside them stands for; `-m slow` runs them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        name = item.nodeid.rpartition("/")[2]
        if any(fnmatchcase(name, each.replace("[", "[[]")) for each in SLOW):
            item.add_marker(pytest.mark.slow)
