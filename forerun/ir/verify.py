"""The module verifier: what must hold across operations, checked before and after passes.

Operations check themselves by their shape rules. Here: values are used after their definition, inside their function,
symbols exist with the declared type, a named dimension means one size within a function, functions and kernels end in
their terminator and return what they declare.
"""

from __future__ import annotations

from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import Block, SSAValue
from xdsl.utils.exceptions import VerifyException

from forerun import dims as dimensions
from forerun.errors import VerificationError
from forerun.ir.decoder import CacheWrite, TreeAttention
from forerun.ir.elementwise import Parameter
from forerun.ir.faults import wrong_parameter
from forerun.ir.operation import SpecOperation, tensor_type
from forerun.ir.storage import STORAGES
from forerun.ir.structure import Cache, Function, Kernel, Return, Weight, Yield, caches, functions, operations, weights
from forerun.ir.text import print_ir

NEIGHBOURHOOD = 3


def verify(module: ModuleOp) -> None:
    """Raise VerificationError at the first rule the module breaks, with the IR around it."""
    seen: set[str] = set()
    for operation in module.ops:
        if not isinstance(operation, Function | Weight | Cache):
            raise VerificationError(f"{operation.name} cannot stand at the top of a module; put it into a spec.func.")
        if operation.symbol in seen:
            raise VerificationError(f"the symbol @{operation.symbol} is defined twice; rename one.")
        seen.add(operation.symbol)
        if not isinstance(operation, Function):
            _check_alone(operation)
        elif wrong := wrong_parameter(operation):
            raise VerificationError(f"@{operation.symbol} {wrong}.")
        elif len(operation.regions) != 1 or len(operation.regions[0].blocks) != 1:
            raise VerificationError(f"@{operation.symbol} does not have one block as its body; give it one.")
    declared_weights, declared_caches = weights(module), caches(module)
    _check_derived(module, declared_weights)
    _check_stored(declared_weights)
    for function in functions(module).values():
        if not isinstance(function.block.last_op, Return):
            raise VerificationError(f"@{function.symbol} does not end in spec.return; add one.")
        names = {dimensions.symbol(dim) for each in function.block.args for dim in tensor_type(each).dims} - {""}
        visible: set[SSAValue] = set(function.block.args)
        for operation in function.body:
            _check(operation, visible, names, declared_weights, declared_caches)


def _check_derived(module: ModuleOp, declared: dict[str, Weight]) -> None:
    for name, each in declared.items():
        index = each.derived
        if index is None:
            continue
        constants = functions(module).get("constants")
        results = [] if constants is None else constants.returned
        if not 0 <= index < len(results) or tensor_type(results[index]) != each.type:
            raise VerificationError(
                f"weight @{name} is no result of @constants with type {each.type}; derive it there."
            )


def _check_stored(declared: dict[str, Weight]) -> None:
    for name, each in declared.items():
        storage = each.storage
        if storage is None:
            continue
        if storage not in STORAGES:
            raise VerificationError(
                f"weight @{name} is stored as {storage}, which is not known; use one of {', '.join(STORAGES)}."
            )
        if each.type.rank != 2 or each.type.dtype != "f32":
            raise VerificationError(f"weight @{name} is stored as {storage}, but only float32 matrices can be.")


def _check(
    operation: SpecOperation,
    visible: set[SSAValue],
    names: set[str],
    declared_weights: dict[str, Weight],
    declared_caches: dict[str, Cache],
) -> None:
    for operand in operation.operands:
        if operand not in visible:
            raise _fault(operation, "uses a value before its definition, or of another function")
    _check_alone(operation)
    for value in operation.results:
        unknown = {dimensions.symbol(dim) for dim in tensor_type(value).dims} - names - {""}
        if unknown:
            raise _fault(operation, f"has the dimension {sorted(unknown)[0]}, which no argument of its function has")
    if isinstance(operation, Parameter):
        symbol = operation.symbol
        if symbol not in declared_weights:
            raise _fault(operation, f"reads the weight @{symbol}, which the module does not declare")
        if declared_weights[symbol].type != operation.result.type:
            raise _fault(
                operation, f"reads @{symbol} as {operation.result.type}, declared {declared_weights[symbol].type}"
            )
    if isinstance(operation, CacheWrite | TreeAttention):
        symbol = operation.symbol
        if symbol not in declared_caches:
            raise _fault(operation, f"uses the cache @{symbol}, which the module does not declare")
        _check_cache(operation, declared_caches[symbol])
    if isinstance(operation, Kernel):
        _check_kernel(operation, names, declared_weights, declared_caches)
    visible.update(operation.results)


def _check_alone(operation: SpecOperation) -> None:
    try:
        operation.verify(verify_nested_ops=False)
    except VerifyException as error:
        raise _fault(operation, str(error)) from error


def _check_cache(operation: CacheWrite | TreeAttention, cache: Cache) -> None:
    """Heads and numbers a head are those of the cache; a query's heads share them evenly."""
    heads, key_dim, value_dim = cache.heads, cache.key_dim, cache.value_dim
    if isinstance(operation, CacheWrite):
        keys, values = tensor_type(operation.keys).dims, tensor_type(operation.values).dims
        fits = keys[1:] == (heads, key_dim) and values[1:] == (heads, value_dim)
    else:
        _, queries, dim = tensor_type(operation.query).dims
        shares = isinstance(queries, int) and queries % heads == 0
        fits = shares and dim == key_dim and operation.value_dim == value_dim
    if not fits:
        raise _fault(
            operation, f"does not fit the cache @{cache.symbol} of {heads} heads with {key_dim} and {value_dim} numbers"
        )


def _check_kernel(
    kernel: Kernel, names: set[str], declared_weights: dict[str, Weight], declared_caches: dict[str, Cache]
) -> None:
    block = kernel.region.block
    if not isinstance(block.last_op, Yield):
        raise _fault(kernel, "does not end in spec.yield")
    if [each.type for each in block.args] != [each.type for each in kernel.operands]:
        raise _fault(kernel, "has operands that do not fit its body's arguments")
    if [each.type for each in kernel.yielded] != [each.type for each in kernel.results]:
        raise _fault(kernel, "has results that are not what it yields")
    visible: set[SSAValue] = set(block.args)
    for operation in operations(block):
        _check(operation, visible, names, declared_weights, declared_caches)


def _fault(operation: SpecOperation, message: str) -> VerificationError:
    return VerificationError(f"spec.{operation.mnemonic} {message}:\n{neighbourhood(operation)}")


def neighbourhood(operation: SpecOperation) -> str:
    """The IR text around an operation, the operation itself marked."""
    block = operation.parent
    assert isinstance(block, Block)
    around = operations(block)
    at = next(index for index, each in enumerate(around) if each is operation)
    lines: list[str] = []
    for index in range(max(0, at - NEIGHBOURHOOD), min(len(around), at + NEIGHBOURHOOD + 1)):
        mark = "  > " if index == at else "    "
        lines.append(mark + print_ir(around[index]).splitlines()[0])
    return "\n".join(lines)
