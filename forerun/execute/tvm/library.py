"""TVM's runtime through its C interface, `tvm/ffi/c_api.h`, which C++ programs use too.

TVM's Python packages import torch. Running a step needs neither: only the shared libraries of their wheels.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
from functools import cache
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from forerun.errors import ForerunError

NONE, INTEGER, DL_TENSOR, RAW_STRING, SMALL_STRING, STRING, FUNCTION = 0, 1, 7, 8, 11, 65, 68
"""Kinds of a value: `TVMFFITypeIndex`."""
OBJECT = 64
"""Kinds from here on are objects, which are counted."""
HEADER = 24
"""Bytes of an object before its own fields."""
TYPES = {"i": 0, "u": 1, "f": 2}
"""numpy's kinds of numbers as `DLDataTypeCode`."""
PACKAGES = (("tvm_ffi", "tvm_ffi", True), ("tvm", "tvm_runtime", True), ("tvm", "tvm_compiler", False))
"""The libraries in the order of their loading: the package, the library's name, whether others see its symbols. The
compiler is LLVM as well, which knows this machine and reads code that was stored as LLVM IR."""


class Value(ctypes.Structure):
    """`TVMFFIAny`: a kind and 8 bytes."""

    _fields_ = (("kind", ctypes.c_int32), ("length", ctypes.c_uint32), ("bits", ctypes.c_int64))
    kind: int
    length: int
    bits: int


class _Header(ctypes.Structure):
    """`TVMFFIObject`."""

    _fields_ = (("count", ctypes.c_uint64), ("kind", ctypes.c_int32), ("padding", ctypes.c_uint32))
    kind: int


class _Bytes(ctypes.Structure):
    """`TVMFFIByteArray`."""

    _fields_ = (("data", ctypes.c_void_p), ("size", ctypes.c_size_t))
    data: int
    size: int

    def text(self) -> str:
        return ctypes.string_at(self.data, self.size).decode("utf-8", "replace")


class _DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("byte_offset", ctypes.c_uint64),
    )


class Tensor:
    """A contiguous array as compiled code takes it; the memory is the array's own."""

    def __init__(self, array: NDArray[Any]) -> None:
        self.array = array
        self._shape = (ctypes.c_int64 * array.ndim)(*array.shape)
        kind, bits = TYPES[array.dtype.kind], array.dtype.itemsize * 8
        shape = ctypes.addressof(self._shape)
        self._header = _DLTensor(array.ctypes.data, 1, 0, array.ndim, kind, bits, 1, shape, None, 0)
        self.address = ctypes.addressof(self._header)


class Object:
    """An object of TVM's, such as a module; released with this one."""

    def __init__(self, handle: int) -> None:
        self.handle = handle
        self.kind = _Header.from_address(handle).kind
        self._release = libraries().TVMFFIObjectDecRef  # kept: an interpreter that ends clears modules first

    def __del__(self) -> None:
        self._release(self.handle)

    def text(self) -> str:
        """The text of a string."""
        return _Bytes.from_address(self.handle + HEADER).text()


Argument = int | str | Tensor | Object


class Arguments:
    """The arguments of a call, which may be changed and used again."""

    def __init__(self, *arguments: Argument) -> None:
        self._kept: list[object] = list(arguments)
        self.values = (Value * len(arguments))()
        for index, argument in enumerate(arguments):
            self.set(index, argument)

    def set(self, index: int, argument: Argument) -> None:
        value = self.values[index]
        self._kept[index] = argument
        match argument:
            case int():
                value.kind, value.bits = INTEGER, argument
            case Tensor():
                value.kind, value.bits = DL_TENSOR, argument.address
            case Object():
                value.kind, value.bits = argument.kind, argument.handle
            case str():
                self._kept[index] = text = ctypes.create_string_buffer(argument.encode())
                value.kind, value.bits = RAW_STRING, ctypes.addressof(text)


class Function(Object):
    """A function of TVM's or of compiled code. A call raises `TvmError`."""

    def __call__(self, *arguments: Argument) -> Any:
        return self.call(Arguments(*arguments))

    def call(self, arguments: Arguments) -> Any:
        """Returns an integer, a text, a function, another object, or None."""
        library, result = libraries(), Value()
        if library.TVMFFIFunctionCall(self.handle, arguments.values, len(arguments.values), ctypes.byref(result)):
            raise _raised(library)
        if result.kind == SMALL_STRING:
            return ctypes.string_at(ctypes.addressof(result) + 8, result.length).decode()
        if result.kind < OBJECT:
            return None if result.kind == NONE else result.bits
        if result.kind == FUNCTION:
            return Function(result.bits)
        found = Object(result.bits)
        return found.text() if result.kind == STRING else found


class TvmError(RuntimeError):
    """What TVM raises."""


def _raised(library: ctypes.CDLL) -> TvmError:
    handle = ctypes.c_void_p()
    library.TVMFFIErrorMoveFromRaised(ctypes.byref(handle))
    if handle.value is None:
        return TvmError("TVM failed without a message")
    error = Object(handle.value)
    kind, message = (_Bytes * 2).from_address(error.handle + HEADER)
    return TvmError(f"{kind.text()}: {message.text()}")


@cache
def libraries() -> ctypes.CDLL:
    """Loads TVM's libraries, once, and returns the one with the C interface. Raises `ForerunError` without them."""
    loaded = [
        ctypes.CDLL(str(_library(package, name)), ctypes.RTLD_GLOBAL if shared else ctypes.RTLD_LOCAL)
        for package, name, shared in PACKAGES
    ]
    interface = loaded[0]
    interface.TVMFFIFunctionCall.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32, ctypes.c_void_p]
    interface.TVMFFIObjectDecRef.argtypes = interface.TVMFFIObjectIncRef.argtypes = [ctypes.c_void_p]
    return interface


def _library(package: str, name: str) -> Path:
    """Finds a library without importing the package that brings it."""
    found = importlib.util.find_spec(package)
    folders = [Path(each) / "lib" for each in (found.submodule_search_locations or ()) if found] if found else []
    given = os.environ.get("TVM_LIBRARY_PATH")  # TVM's own variable
    for folder in [Path(given), *folders] if given else folders:
        for form in ("lib{}.so", "lib{}.dylib", "{}.dll"):
            if (path := folder / form.format(name)).is_file():
                return path
    raise ForerunError(f"TVM's library {name} is not installed: run `pip install apache-tvm`.")


@cache
def function(name: str) -> Function:
    """Returns one of TVM's global functions. Raises `TvmError` if there is none of that name."""
    library, handle = libraries(), ctypes.c_void_p()
    text = ctypes.create_string_buffer(name.encode())
    given = _Bytes(ctypes.addressof(text), len(text.value))
    if library.TVMFFIFunctionGetGlobal(ctypes.byref(given), ctypes.byref(handle)):
        raise _raised(library)
    if handle.value is None:
        raise TvmError(f"TVM has no function {name}")
    return Function(handle.value)


class Module:
    """Compiled code; `library` is the shared library that it was loaded from, if it was."""

    def __init__(self, module: Object, library: bytes | None = None) -> None:
        self._module, self.library = module, library

    @staticmethod
    def load(path: Path) -> Module:
        """Loads a shared library, or LLVM IR, which is compiled now. Raises `TvmError`."""
        module = function("ffi.ModuleLoadFromFile")(str(path))
        return Module(module, path.read_bytes() if path.suffix == ".so" else None)

    @staticmethod
    def of(module: Any) -> Module:
        """Takes a module that TVM's Python package has made."""
        handle = int(module.__chandle__())
        libraries().TVMFFIObjectIncRef(handle)
        return Module(Object(handle))

    def entry(self, name: str) -> Function:
        """Returns a function of the code. The module must outlive it."""
        return function("ffi.ModuleGetFunction")(self._module, name, 0)

    def has(self, name: str) -> bool:
        """Whether the code has a function."""
        return function("ffi.ModuleGetFunction")(self._module, name, 0) is not None

    def text(self, form: str) -> str:
        """Returns the code as LLVM IR ("ll") or assembly ("s")."""
        return function("ffi.ModuleInspectSource")(self._module, form)

    def write(self, path: Path, form: str) -> None:
        """Writes the code as LLVM IR ("ll") or as an object file ("o")."""
        function("ffi.ModuleWriteToFile")(self._module, str(path), form)
