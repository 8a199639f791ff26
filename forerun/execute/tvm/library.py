"""TVM as the code that runs compiled steps sees it, without TVM's annotations, which are too narrow."""

import importlib
from typing import Any

from forerun.execute.tvm.cores import size_pool

size_pool()
tvm: Any = importlib.import_module("tvm")
tvm_ffi: Any = importlib.import_module("tvm_ffi")
