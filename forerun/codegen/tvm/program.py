"""The functions of a compiled step: `run` executes a program of kernel calls, shared among the threads of a team.

The program is an int64 array [calls, 2 + slots]: the number of the kernel's function, how many words of weights it
reads whole, then its offsets. Layers that differ only in their weights and states share functions, so code size and
compile time do not grow with depth. A call begins when all pieces of the one before it are finished
(`codegen.tvm.team`). One call can run a function several times, on other offsets, with no wait between: the number of
the function has 16 bits, the 16 above them say how often more, and the 32 above those how many offsets are one run's.

    run(program, sizes, weights, tables, numbers, indices, state, requests, inputs, first, last, team)
    help(team, member)      what a helper does, from 1 on: it returns after `dismiss`
    dismiss(team)           sends helpers away, between steps
"""

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

from forerun.codegen.tvm.builder import MEMORIES, integer, when
from forerun.codegen.tvm.layout import DISMISS, ENTRY, HELP, LINE
from forerun.codegen.tvm.team import COLUMNS, POINTERS, call, team_text
from forerun.codegen.tvm.untyped import IRBuilder, T, tirx, tvm, tvm_ir

ROWS = ("N", "S")
"""Dimensions whose size tells how many rows a call has: of a step, and of a source sequence."""


def step_module(kernels: Mapping[str, Any], triple: str, sizes: Sequence[str], apart: bool = False) -> Any:
    """Returns an IRModule of the kernels' functions and the entries.

    Kernels are numbered in the mapping's order; `sizes` are the names of the dimensions whose sizes are passed. With
    `apart`, kernels stay functions of their own: LLVM then compiles many large ones in a fraction of the time.
    """
    globals_ = [tvm_ir.GlobalVar(name) for name in kernels]
    callers = 2 if apart else 1  # what one place alone calls, LLVM makes part of its caller
    work = _work(globals_ * callers, list(kernels.values()) * callers)
    worker = tvm_ir.GlobalVar("work")

    def share(team: Any, member: Any) -> None:
        arguments = [tirx.address_of(team[0, 0]), member, _members(team)]
        T.evaluate(tvm_ir.Call(worker, arguments, ret_ty=work.ret_type))

    rows = [at for at, name in enumerate(sizes) if name in ROWS]
    functions = [_run(share, team_text(triple), rows), _help(share), _dismiss()]
    entries = {tvm_ir.GlobalVar(name): each for name, each in zip((ENTRY, HELP, DISMISS), functions, strict=True)}
    return tvm.IRModule({**dict(zip(globals_, kernels.values(), strict=True)), worker: work, **entries})


def long(value: int) -> Any:
    return integer(value, "int64")


def _work(names: Sequence[Any], functions: Sequence[Any]) -> Any:
    """A member's part of a step: it takes pieces as long as there are any."""
    with IRBuilder() as builder, T.prim_func(is_private=True, s_tir=True):
        team = T.arg("team", T.handle("int64"))
        member, members = (T.arg(name, T.int64()) for name in ("member", "members"))
        taken = T.alloc_buffer((1,), "int64", scope="local")
        T.buffer_store(taken, long(0), [0])
        with T.While(taken[0] >= long(0)):
            T.buffer_store(taken, call("int64", "take", team, member, members, _bits(taken[0], 0, 8)), [0])
            with when(taken[0] >= long(0)):
                start = T.Bind(tirx.shift_right(taken[0], long(32)) * call("int64", "number", team, long(COLUMNS)))
                pointers = [
                    T.Bind(call("handle", "pointer", team, long(POINTERS + at))) for at in range(len(MEMORIES) + 2)
                ]
                program = T.decl_buffer((1 << 40,), "int64", data=pointers[0])
                first = T.Bind(_bits(taken[0], 16, 16).astype("int32"))
                last = T.Bind(first + _bits(taken[0], 0, 8).astype("int32"))
                pieces = T.Bind((members * _bits(taken[0], 8, 8)).astype("int32"))
                head = T.Bind(program[start])
                kind, offsets = T.Bind(_bits(head, 0, 16)), T.Bind(tirx.shift_right(head, long(32)))
                with T.serial(0, _bits(head, 16, 16).astype("int32") + integer(1)) as run:
                    slots = tirx.address_of(program[start + long(2) + run.astype("int64") * offsets])
                    arguments = [first, last, pieces, pointers[1], slots, *pointers[2:]]
                    _dispatch(kind, names, functions, arguments, 0)
    return builder.get()


def _bits(value: Any, start: int, count: int) -> Any:
    return tirx.bitwise_and(tirx.shift_right(value, long(start)), long((1 << count) - 1))


def _run(share: Callable[[Any, Any], None], text: str, rows: Sequence[int]) -> Any:
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_attr({"global_symbol": ENTRY})
        handles = [T.arg(name, T.handle()) for name in ("program", "sizes", *MEMORIES)]
        first, last = (T.arg(name, T.int32()) for name in ("first", "last"))
        team = _team(T.arg("team", T.handle()))
        columns = tirx.Var("columns", "int64")
        program = T.match_buffer(handles[0], (tirx.Var("calls", "int64"), columns), "int64")
        buffers = [
            T.match_buffer(handle, (tirx.Var(f"{name}_size", "int64"),), dtype)
            for handle, (name, dtype) in zip(handles[1:], {"sizes": "int32", **MEMORIES}.items(), strict=True)
        ]
        with T.attr(0, "pragma_import_llvm", text), when(first < last):
            here = tirx.address_of(team[0, 0])
            pointers = [tirx.address_of(program[0, 0]), *(tirx.address_of(each[0]) for each in buffers)]
            for at, pointer in enumerate(pointers):
                T.evaluate(call("int64", "point", here, long(POINTERS + at), pointer))
            most = reduce(tirx.max, [buffers[0][at] for at in rows], integer(1))
            numbers = [each.astype("int64") for each in (first, last - first, columns, most)]
            T.evaluate(call("int64", "begin", here, _members(team), *numbers))
            share(team, long(0))
    return builder.get()


def _help(share: Callable[[Any, Any], None]) -> Any:
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_attr({"global_symbol": HELP})
        handle, member = T.arg("team", T.handle()), T.arg("member", T.int64())
        share(_team(handle), member)
    return builder.get()


def _dismiss() -> Any:
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_attr({"global_symbol": DISMISS})
        team = _team(T.arg("team", T.handle()))
        T.evaluate(call("int64", "dismiss", tirx.address_of(team[0, 0])))
    return builder.get()


def _members(team: Any) -> Any:
    return tirx.Cast("int64", team.shape[0]) - long(2)


def _team(handle: Any) -> Any:
    return T.match_buffer(handle, (tirx.Var("lines", "int64"), long(LINE)), "int64")


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
