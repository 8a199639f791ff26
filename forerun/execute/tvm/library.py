"""TVM as what runs compiled code sees it, without annotations, which describe less than it accepts."""

import importlib
from typing import Any

from forerun.execute.tvm.cores import size_pool

size_pool()
tvm: Any = importlib.import_module("tvm")
tvm_ffi: Any = importlib.import_module("tvm_ffi")
