"""TVM's runtime through its C interface, and what a machine without its pieces says."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from forerun.codegen.tvm.layout import zeros
from forerun.codegen.tvm.target import Machine
from forerun.errors import ForerunError
from forerun.execute.tvm import library, linking
from forerun.execute.tvm.library import Arguments, Module, Tensor, TvmError, function
from forerun.execute.tvm.processor import host, same_system, this_processor


def test_values_of_every_kind_come_back() -> None:
    assert function("runtime.NumThreads")() >= 1
    assert "-" in function("tvm.codegen.llvm.GetProcessTriple")()
    features = function("tvm.codegen.llvm.GetHostCPUFeatures")()
    assert function("ffi.MapSize")(features) == len(host()[2])


def test_this_processor_is_the_one_that_code_is_compiled_for() -> None:
    """The C interface and TVM's own Python read the same features."""
    assert this_processor() == Machine.host().processor


def test_errors_of_tvm_are_raised(tmp_path: Path) -> None:
    with pytest.raises(TvmError, match="TVM has no function"):
        function("forerun.no_such")
    with pytest.raises(TvmError, match="Failed to load dynamic shared library"):
        Module.load(tmp_path / "missing.so")


def test_arguments_may_be_changed() -> None:
    arguments = Arguments(0, "text", Tensor(np.zeros((2, 3), np.int64)))
    assert [each.kind for each in arguments.values] == [library.INTEGER, library.RAW_STRING, library.DL_TENSOR]
    arguments.set(0, 7)
    assert arguments.values[0].bits == 7


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("TVM_LIBRARY_PATH", str(tmp_path))
    with pytest.raises(ForerunError, match="TVM's library tvm_runtime is not installed: run `pip install apache-tvm`"):
        library._library("tvm", "tvm_runtime")


@pytest.mark.parametrize("count", [1, 15, 16, 1 << 20])
def test_arrays_begin_at_a_cache_line(count: int) -> None:
    array = zeros(count)
    assert array.ctypes.data % 64 == 0
    assert array.shape == (count,)
    assert not array.any()


def test_systems_are_told_apart_by_architecture_and_operating_system() -> None:
    assert same_system("x86_64-conda-linux-gnu", "x86_64-unknown-linux-gnu")
    assert same_system("arm64-apple-darwin23", "aarch64-apple-darwin22")
    assert not same_system("x86_64-unknown-linux-gnu", "aarch64-linux-gnu")
    assert not same_system("aarch64-linux-gnu", "arm64-apple-darwin")


def test_a_linker_that_refuses_is_quoted(tmp_path: Path) -> None:
    if not linking.can_link():
        pytest.skip("this machine has no C compiler")
    (tmp_path / "step.o").write_text("no object file")
    with pytest.raises(ForerunError, match=re.compile(r"cannot link step\.o: ", re.DOTALL)):
        linking.link(tmp_path / "step.o", tmp_path / "step.so")
