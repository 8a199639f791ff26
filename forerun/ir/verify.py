"""The module verifier: what must hold across operations, checked before and after passes.

Operations check themselves by their shape rules. This module checks that values are used after their definition,
inside their function, that symbols exist with the declared type, states are read and written as declared, a named
dimension means one size within a function, and functions and kernels end in their terminator and return what they
declare.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import Block, Operation, SSAValue
from xdsl.utils.exceptions import VerifyException

from forerun import dims as dimensions
from forerun.dims import Dim
from forerun.errors import VerificationError
from forerun.ir.decoder import TreeAttention
from forerun.ir.elementwise import Parameter
from forerun.ir.exchange import Receive
from forerun.ir.families import Exchange
from forerun.ir.faults import wrong_parameter
from forerun.ir.operation import SpecOperation, tensor_type
from forerun.ir.properties import SYMBOL
from forerun.ir.recurrences import TreeRecurrence, WithBody
from forerun.ir.states import StateRead, StateWrite
from forerun.ir.storage import STORAGES
from forerun.ir.structure import (
    Function,
    Kernel,
    Return,
    State,
    Weight,
    Yield,
    functions,
    operations,
    states,
    walk,
    weights,
)
from forerun.ir.text import print_ir
from forerun.ir.types import TensorType
from forerun.signature import STEP, STEP_ARGUMENTS

NEIGHBOURHOOD = 3


@dataclass(frozen=True)
class Declared:
    """The symbols of a module."""

    weights: dict[str, Weight]
    states: dict[str, State]


def verify(module: ModuleOp) -> None:
    """Raise VerificationError at the first rule the module breaks, with the IR around it."""
    seen: set[str] = set()
    for operation in module.ops:
        if not isinstance(operation, Function | Weight | State):
            raise VerificationError(f"{operation.name} cannot stand at the top of a module; put it into a spec.func.")
        if isinstance(operation, Function):
            _check_function(operation)
        else:
            _check_alone(operation)
        if operation.symbol in seen:
            raise VerificationError(f"the symbol @{operation.symbol} is defined twice; rename one.")
        seen.add(operation.symbol)
    declared = Declared(weights(module), states(module))
    _check_stored(declared.weights)
    for function in functions(module).values():
        given = [*function.block.args, *(each.result for each in function.body if isinstance(each, Receive))]
        names = {dimensions.symbol(dim) for each in given for dim in tensor_type(each).dims} - {""}
        visible: set[SSAValue] = set(function.block.args)
        for operation in function.block.ops:
            _check(operation, visible, names, declared)
        _check_signature(function)
        _check_order(function, declared)
    _check_derived(module, declared.weights)


def _check_function(function: Function) -> None:
    """What is said about a function by itself: its parameters, its arguments' types and its end."""
    symbol = function.properties.get("symbol")
    called = f"@{function.symbol}" if symbol is not None and SYMBOL.holds(symbol) else function.name
    if wrong := wrong_parameter(function):
        raise VerificationError(f"{called} {wrong}.")
    if len(function.regions) != 1 or len(function.regions[0].blocks) != 1:
        raise VerificationError(f"{called} does not have one block as its body; give it one.")
    if function.operands or function.results:
        raise VerificationError(f"{called} has operands or results of its own; a function has only arguments.")
    for name in ("arena", "max_rows", "max_outputs"):
        if (getattr(function, name) or 0) < 0:
            raise VerificationError(f"{called} has the {name} {getattr(function, name)}; give a number of at least 0.")
    for index, each in enumerate(function.block.args):
        if not isinstance(each.type, TensorType):
            raise VerificationError(f"{called} has argument {index} of type {each.type}; give it a !spec.tensor type.")
    if not isinstance(function.block.last_op, Return):
        raise VerificationError(f"{called} does not end in spec.return; add one.")


def _check_derived(module: ModuleOp, declared: dict[str, Weight]) -> None:
    for name, each in declared.items():
        index = each.derived
        if index is None:
            continue
        constants = functions(module).get("constants")
        results = [] if constants is None else constants.returned
        if not 0 <= index < len(results) or tensor_type(results[index]) != each.type:
            raise VerificationError(
                f"weight @{name} is not a result of @constants of type {each.type}; derive it there."
            )


def _check_stored(declared: dict[str, Weight]) -> None:
    for name, each in declared.items():
        if each.source is not None:
            axis, _, end = each.part
            whole = declared.get(each.source)
            if whole is None or whole.type.rank <= axis or int(whole.shape[axis]) < end or whole.dtype != each.dtype:
                raise VerificationError(
                    f"weight @{name} is no part of a weight @{each.source}; declare one that has it."
                )
        storage = each.storage
        if storage is None:
            continue
        if storage not in STORAGES:
            raise VerificationError(
                f"weight @{name} is stored as {storage}, an unknown weight dtype; use one of {', '.join(STORAGES)}."
            )
        if each.type.rank not in (2, 3) or each.type.dtype != "f32":
            raise VerificationError(f"weight @{name} is stored as {storage}, but only float32 matrices can be.")


def _check(operation: Operation, visible: set[SSAValue], names: set[str], declared: Declared) -> None:
    if not isinstance(operation, SpecOperation) or isinstance(operation, Function | Weight | State):
        raise _fault(operation, "cannot stand in a function")
    if operation.ends_body and operation.next_op is not None:
        raise _fault(operation, "must be the last operation of a body")
    for operand in operation.operands:
        if operand not in visible:
            raise _fault(operation, "uses a value before its definition, or one of another function")
    _check_alone(operation)
    owner = operation.parent_op()
    if isinstance(owner, WithBody) and (operation.reads or operation.writes or operation.regions):
        raise _fault(operation, "stands in the body of a recurrence, which may only compute values")
    if isinstance(owner, Kernel) and isinstance(operation, Kernel):
        raise _fault(operation, "stands in another kernel, but is one launch by itself")
    for value in operation.results:
        unknown = {dimensions.symbol(dim) for dim in tensor_type(value).dims} - names - {""}
        if unknown:
            raise _fault(operation, f"has the dimension {sorted(unknown)[0]}, which no argument of its function has")
    if isinstance(operation, Parameter):
        symbol = operation.symbol
        if symbol not in declared.weights:
            raise _fault(operation, f"reads the weight @{symbol}, which the module does not declare")
        if declared.weights[symbol].type != operation.result.type:
            raise _fault(
                operation,
                f"reads @{symbol} as {operation.result.type}, not the declared {declared.weights[symbol].type}",
            )
    for symbol in (*operation.reads, *operation.writes):
        if symbol not in declared.states:
            raise _fault(operation, f"uses the state @{symbol}, which the module does not declare")
    if wrong := _state_misfit(operation, declared.states):
        raise _fault(operation, wrong)
    if isinstance(operation, WithBody):
        _check_recurrence(operation, declared)
    if isinstance(operation, Kernel):
        _check_kernel(operation, names, declared)
    visible.update(operation.results)


def _check_alone(operation: SpecOperation) -> None:
    try:
        operation.verify(verify_nested_ops=False)
    except VerifyException as error:
        raise _fault(operation, str(error)) from error


def _state_misfit(operation: SpecOperation, declared: dict[str, State]) -> str | None:
    """The mismatch between an operation and the states that it reads and writes: their `per`, sizes or dtype."""
    match operation:
        case StateWrite():
            state, kind = declared[operation.symbol], tensor_type(operation.value)
            if state.per == "row":
                return f"writes @{state.symbol}, a state per row, which only spec.tree_recurrence writes"
            return _record_misfit(state, kind.dims[1:], kind.dtype)
        case StateRead():
            state, kind = declared[operation.symbol], tensor_type(operation.result)
            if state.per == "row":
                return f"reads @{state.symbol}, a state per row, which only spec.tree_recurrence reads"
            return _record_misfit(state, kind.dims[tensor_type(operation.slots).rank :], kind.dtype)
        case TreeRecurrence():
            state, kind = declared[operation.symbol], tensor_type(operation.before)
            if state.per != "row":
                return f"uses @{state.symbol}, a state per {state.per}, but needs one per row"
            return _record_misfit(state, kind.dims, kind.dtype)
        case TreeAttention():
            return _attention_misfit(operation, declared[operation.symbol], declared[operation.values])
        case _:
            return None


def _record_misfit(state: State, dims: Sequence[Dim], dtype: str) -> str | None:
    if tuple(dims) == state.shape and dtype == state.dtype:
        return None
    return f"does not fit the state @{state.symbol}, whose records are {state.type}"


def _attention_misfit(operation: TreeAttention, keys: State, values: State) -> str | None:
    """Keys [Hkv, D] and values [Hkv, Dv], both per position; a query's heads share those of the keys evenly."""
    for state in (keys, values):
        if state.per != "position":
            return f"reads @{state.symbol}, a state per {state.per}, but needs one per position"
        if len(state.shape) != 2:
            return f"reads @{state.symbol}, whose records are {state.type}, but needs records of two dimensions"
    _, queries, dim = tensor_type(operation.query).dims
    heads, key_dim = keys.shape
    shares = isinstance(queries, int) and queries % heads == 0
    if shares and dim == key_dim and values.shape == (heads, operation.value_dim):
        return None
    return f"does not fit the states @{keys.symbol} of {keys.type} and @{values.symbol} of {values.type}"


def _check_recurrence(recurrence: WithBody, declared: Declared) -> None:
    """The body uses only its own arguments."""
    visible: set[SSAValue] = set(recurrence.region.block.args)
    for operation in recurrence.region.block.ops:
        _check(operation, visible, set(), declared)
    if not visible.issuperset((recurrence.after, *recurrence.read)):
        raise _fault(recurrence, "yields a value of another body")


def _check_signature(function: Function) -> None:
    """An argument of `@step` with the name of one that the runtime gives has its dimensions and its dtype."""
    if function.symbol != STEP:
        return
    for given in function.signature.arguments:
        known = STEP_ARGUMENTS.get(given.name)
        if known is not None and given != known:
            types = [TensorType.of(each.dims, each.dtype) for each in (given, known)]
            raise VerificationError(f"@{STEP} has the argument %{given.name} of type {types[0]}; give it {types[1]}.")


def _check_order(function: Function, declared: Declared) -> None:
    """A state per row has one recurrence in a function, and a function does not write the request state it reads."""
    written: dict[str, SpecOperation] = {}
    read: set[str] = set()
    branches = len(function.branches)
    for operation in walk(function.body):
        branch = operation.branch if isinstance(operation, Kernel | Exchange) else None
        if branch is not None and not 0 <= branch < branches:
            raise _fault(operation, f"belongs to branch {branch}, but @{function.symbol} has {branches}")
        if isinstance(operation, TreeRecurrence):
            if operation.symbol in written:
                raise _fault(operation, f"is the second recurrence over @{operation.symbol} in @{function.symbol}")
            written[operation.symbol] = operation
        elif isinstance(operation, StateRead) and declared.states[operation.symbol].per == "request":
            read.update(operation.reads)
        elif isinstance(operation, StateWrite):
            written.setdefault(operation.symbol, operation)
    for symbol in sorted(read & {*written}):
        raise _fault(written[symbol], f"writes @{symbol}, which @{function.symbol} reads; write it in another entry")


def _check_kernel(kernel: Kernel, names: set[str], declared: Declared) -> None:
    block = kernel.region.block
    if not isinstance(block.last_op, Yield):
        raise _fault(kernel, "does not end in spec.yield")
    if [each.type for each in block.args] != [each.type for each in kernel.operands]:
        raise _fault(kernel, "has operands that do not fit its body's arguments")
    if [each.type for each in kernel.yielded] != [each.type for each in kernel.results]:
        raise _fault(kernel, "has results of other types than it yields")
    visible: set[SSAValue] = set(block.args)
    for operation in block.ops:
        _check(operation, visible, names, declared)


def _fault(operation: Operation, message: str) -> VerificationError:
    return VerificationError(f"{operation.name} {message}:\n{neighbourhood(operation)}")


def neighbourhood(operation: Operation) -> str:
    """The IR text around an operation, with the operation marked."""
    block = operation.parent
    assert isinstance(block, Block)
    around = operations(block)
    at = next(index for index, each in enumerate(around) if each is operation)
    lines: list[str] = []
    for index in range(max(0, at - NEIGHBOURHOOD), min(len(around), at + NEIGHBOURHOOD + 1)):
        mark = "  > " if index == at else "    "
        lines.append(mark + print_ir(around[index]).splitlines()[0])
    return "\n".join(lines)
