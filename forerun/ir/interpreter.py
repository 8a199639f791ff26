"""The reference interpreter: it defines what IR means, one operation at a time, in torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterable, Sequence
from typing import Any, cast

import torch
from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import SSAValue

from forerun import dims as dimensions
from forerun.errors import ForerunError, InvalidOptionError
from forerun.ir.elementwise import Parameter
from forerun.ir.operation import Environment, SpecOperation, tensor_type
from forerun.ir.recurrences import Recurrence, TreeRecurrence, WithBody
from forerun.ir.storage import as_stored
from forerun.ir.structure import Function, Kernel, State, backward_slice, functions, states, weights
from forerun.ir.types import torch_dtype
from forerun.ir.views import Gather, TakeAlong

Values = dict[SSAValue, torch.Tensor]


class OutsideTableError(ForerunError, IndexError):
    """An index beyond the end of a table: the table's name, its entries, and how far beyond."""

    def __init__(self, table: str, size: int, excess: int) -> None:
        super().__init__(
            f"the table {table} has {size} entries, {excess} too few: give indices from 0 to {size - 1} into it"
        )
        self.table, self.size, self.excess = table, size, excess


def evaluate(
    module: ModuleOp, name: str, inputs: Sequence[torch.Tensor], environment: Environment
) -> list[torch.Tensor]:
    """Evaluate a function. Its dimension names take their values from the inputs' sizes; states change in place.
    Weights have the values that remain after storage in their weight dtype.

    Raises ValueError if the inputs do not fit the function's arguments.
    """
    function = functions(module)[name]
    values, inner = called(module, function, inputs, environment)
    returned = function.returned
    run_body(function.body, values, inner, keep=set(returned))
    return [values[each] for each in returned]


def called(
    module: ModuleOp, function: Function, inputs: Sequence[torch.Tensor], environment: Environment
) -> tuple[Values, Environment]:
    """What a function's body starts from: its arguments' values, and the environment with its dimensions' sizes."""
    bindings = dict(environment.bindings)
    for argument, tensor in zip(function.block.args, inputs, strict=True):
        dimensions.bind(tensor_type(argument).dims, tensor.shape, bindings)
    inner = Environment(as_stored(module, environment.weights), environment.states, bindings, environment.channel)
    return dict(zip(function.block.args, inputs, strict=True)), inner


def run_body(
    body: Iterable[SpecOperation], values: Values, environment: Environment, keep: Container[SSAValue] = ()
) -> None:
    """Evaluate operations in order, from and into `values`, which drops values not in `keep` after their last use."""
    operations = [each for each in body if not each.ends_body]
    uses = Counter(operand for each in operations for operand in each.operands)
    remaining: dict[SSAValue, int] = {
        value: uses[value] for each in operations for value in each.results if value not in keep
    }
    for operation in operations:
        inputs = [values[each] for each in operation.operands]
        if isinstance(operation, Kernel):
            results = _run_kernel(operation, inputs, environment)
        elif isinstance(operation, Recurrence):
            results = _run_recurrence(operation, inputs, environment)
        elif isinstance(operation, TreeRecurrence):
            results = _run_tree_recurrence(operation, inputs, environment)
        else:
            try:
                results = operation.evaluate(environment, *operation.placed(inputs))
            except (IndexError, RuntimeError) as error:
                raise _outside_table(operation, inputs) or error from error
        for value, tensor in zip(
            operation.results, (results,) if isinstance(results, torch.Tensor) else results, strict=True
        ):
            values[value] = tensor
        for operand in operation.operands:
            if operand in remaining:
                remaining[operand] -= 1
                if remaining[operand] == 0:
                    del values[operand]


def _outside_table(operation: SpecOperation, inputs: Sequence[torch.Tensor]) -> OutsideTableError | None:
    """The fault in the indices into a table, if there is one."""
    if not isinstance(operation, Gather | TakeAlong):
        return None
    table, *indices = inputs
    first = operation.dim if isinstance(operation, TakeAlong) else 0
    for axis, index in enumerate(indices, start=first):
        excess = int(index.max()) - table.shape[axis] + 1 if index.numel() else 0
        if excess > 0:
            return OutsideTableError(_name_of(operation.operands[0]), table.shape[axis], excess)
    return None


def _name_of(value: SSAValue) -> str:
    """The weight that a value is a view of, or its own name."""
    owner = value.owner
    if isinstance(owner, Parameter):
        return str(owner.symbol)
    if isinstance(owner, SpecOperation) and len(owner.operands) == 1:
        return _name_of(owner.operands[0])
    return str(value.name_hint or "of positions")


def _run_kernel(kernel: Kernel, inputs: Sequence[torch.Tensor], environment: Environment) -> tuple[torch.Tensor, ...]:
    values: Values = dict(zip(kernel.region.block.args, inputs, strict=True))
    yielded = kernel.yielded
    run_body(kernel.body, values, environment, keep=set(yielded))
    return tuple(values[each] for each in yielded)


def _run_recurrence(
    recurrence: Recurrence, inputs: Sequence[torch.Tensor], environment: Environment
) -> tuple[torch.Tensor, ...]:
    """Position by position."""
    kind = tensor_type(recurrence.before)
    record = torch.zeros(kind.sizes({}), dtype=torch_dtype(kind.dtype))
    size = dimensions.evaluate(recurrence.size, environment.bindings)
    results = _empty(recurrence, size)
    for position in range(size):
        record, *found = _run_position(recurrence, position, record, inputs, environment)
        for result, value in zip(results, found, strict=True):
            result[position] = value
    return results


def _run_tree_recurrence(
    recurrence: TreeRecurrence, inputs: Sequence[torch.Tensor], environment: Environment
) -> tuple[torch.Tensor, ...]:
    """Row by row, parents first."""
    records = environment.states[recurrence.symbol]
    parents, places, order, *given = inputs
    results = _empty(recurrence, len(parents))
    rows: list[int] = cast(Any, order).tolist()
    for row in rows:
        before = records[parents[row]] if parents[row] >= 0 else torch.zeros_like(records[0])
        record, *found = _run_position(recurrence, row, before, given, environment)
        records[places[row].long()] = record.to(records.dtype)
        for result, value in zip(results, found, strict=True):
            result[row] = value
    return results


def _empty(recurrence: WithBody, rows: int) -> tuple[torch.Tensor, ...]:
    """Room for the outputs of so many rows."""
    kinds = [tensor_type(each) for each in recurrence.read]
    return tuple(torch.empty(rows, *kind.sizes({}), dtype=torch_dtype(kind.dtype)) for kind in kinds)


def _run_position(
    recurrence: WithBody, row: int, before: torch.Tensor, inputs: Sequence[torch.Tensor], environment: Environment
) -> list[torch.Tensor]:
    """Returns what the body yields."""
    values: Values = {recurrence.before: before}
    for (inner, (_, by_row)), tensor in zip(recurrence.of_rows().items(), inputs, strict=True):
        values[inner] = tensor[row] if by_row else tensor
    wanted = [recurrence.after, *recurrence.read]
    run_body(recurrence.body, values, environment, keep=set(wanted))
    return [values[each] for each in wanted]


def with_derived(module: ModuleOp, stored: Callable[[str], torch.Tensor]) -> Callable[[str], torch.Tensor]:
    """All weights of a module: the stored ones, parts of them, and those of `@constants`, evaluated on demand.

    Nothing is kept: tables and masks over positions have large intermediate values.
    """
    declared = weights(module)

    def weight(name: str) -> torch.Tensor:
        given = declared.get(name)
        if given is not None and given.source is not None:
            return given.part_of(weight(given.source))
        derived = declared[name].derived if name in declared else None
        if derived is None:
            return stored(name)
        value = functions(module)["constants"].returned[derived]
        values: Values = {}
        try:
            run_body(backward_slice(value), values, Environment(weight), keep={value})
        except IndexError as error:
            raise InvalidOptionError(
                f"The model's position table is too short ({error}); compile with a smaller max_length."
            ) from error
        return values[value]

    return weight


def new_states(module: ModuleOp, slots: int, requests: int = 1, rows: int = 1) -> dict[str, torch.Tensor]:
    """Records [slots, *shape] of states per position, [requests, *shape] of those per request and [rows, *shape] of
    those per row, filled with NaN: a record that is read must have been written before."""
    counts = {"position": slots, "request": requests, "row": rows}

    def records(state: State) -> torch.Tensor:
        return torch.full((counts[state.per], *state.shape), torch.nan, dtype=torch_dtype(state.dtype))

    return {name: records(each) for name, each in states(module).items()}
