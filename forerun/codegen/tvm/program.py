"""One packed function that runs a step: it executes a program of kernel calls in one parallel launch.

The program is an int64 array [calls, 1 + slots]: the number of the kernel's function, then its offsets. Layers that
differ only in their weights and states share functions, so code size and compile time do not grow with depth. All
threads meet at a barrier after each call.

    run(program, sizes, weights, tables, numbers, indices, state, requests, inputs, first, last, parts)
"""

from collections.abc import Mapping, Sequence
from typing import Any

from forerun.codegen.tvm.builder import MEMORIES, integer
from forerun.codegen.tvm.layout import ENTRY
from forerun.codegen.tvm.untyped import IRBuilder, T, tirx, tvm, tvm_ir


def step_module(kernels: Mapping[str, Any]) -> Any:
    """Returns an IRModule of the kernels' functions and the entry; kernels are numbered in the mapping's order."""
    globals_ = [tvm_ir.GlobalVar(name) for name in kernels]
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_attr({"global_symbol": ENTRY})
        names = ["program", "sizes", *MEMORIES]
        handles = [T.arg(name, T.handle()) for name in names]
        first, last, parts = (T.arg(name, T.int32()) for name in ("first", "last", "parts"))
        columns = tirx.Var("columns", "int64")
        program = T.match_buffer(handles[0], (tirx.Var("calls", "int64"), columns), "int64")
        sizes = T.match_buffer(handles[1], (tirx.Var("sizes_size", "int64"),), "int32")
        memories = [
            T.match_buffer(handle, (tirx.Var(f"{name}_size", "int64"),), dtype)
            for handle, (name, dtype) in zip(handles[2:], MEMORIES.items(), strict=True)
        ]
        pointers = [tirx.address_of(sizes[0])]
        bases = [tirx.address_of(memory[0]) for memory in memories]
        with T.attr(0, "pragma_parallel_launch_point", 1), T.serial(first, last) as call:
            row = call.astype("int64")
            with T.attr(0, "pragma_parallel_barrier_when_finish", 1), T.parallel(parts) as part:
                slots = tirx.address_of(program[row, integer(1, "int64")])
                kind = T.Bind(program[row, integer(0, "int64")])
                arguments = [part, parts, *pointers, slots, *bases]
                _dispatch(kind, globals_, list(kernels.values()), arguments, 0)
    return tvm.IRModule({**dict(zip(globals_, kernels.values(), strict=True)), tvm_ir.GlobalVar(ENTRY): builder.get()})


def _dispatch(kind: Any, names: Sequence[Any], functions: Sequence[Any], arguments: Sequence[Any], first: int) -> None:
    """Calls the function of a number, found by binary search."""
    if len(names) == 1:
        T.evaluate(tvm_ir.Call(names[0], arguments, ret_ty=functions[0].ret_type))
        return
    middle = len(names) // 2
    with T.If(kind < integer(first + middle, "int64")):
        with T.Then():
            _dispatch(kind, names[:middle], functions[:middle], arguments, first)
        with T.Else():
            _dispatch(kind, names[middle:], functions[middle:], arguments, first + middle)


def build(module: Any, target: Any) -> Any:
    """Lowers and compiles to an LLVM runtime module.

    The passes are TVM's own for the CPU, without common-subexpression elimination (LLVM does it) and the lowering of
    allocations (all are small and stay on the stack).
    """
    transform = tirx.transform
    passes = [
        transform.BindTarget(target.with_host(target)),
        transform.StmtSimplify(),
        transform.FlattenBuffer(),
        transform.VectorizeLoop(True),
        transform.UnrollLoop(),
        transform.StmtSimplify(),
        transform.AnnotateEntryFunc(),
        transform.SplitHostDevice(),
        transform.MakePackedAPI(),
        transform.LowerIntrin(),
    ]
    for each in passes:
        module = each(module)
    return tvm.get_global_func("target.build.llvm")(module, target)
