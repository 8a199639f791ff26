"""The plans of a function's regions, and the text by which equal kernels are found."""

from forerun import ir
from forerun.codegen.regions import BLOCK, block_size, regions
from forerun.codegen.tvm.formats import FLOAT32, WeightFormat
from forerun.codegen.tvm.phases import Plan, Slot, Surroundings
from forerun.codegen.tvm.planning import Planner
from forerun.codegen.tvm.quantized import FORMATS
from forerun.codegen.tvm.records import Form
from forerun.errors import UnsupportedOperationError


def surroundings(module: ir.ModuleOp) -> Surroundings:
    """What planning the regions of a module's entries needs to know of it."""
    keys: set[str] = set()
    declared = ir.weights(module)
    formats: dict[str, WeightFormat] = {}
    for name, weight in declared.items():
        if storage := weight.storage:
            if storage not in FORMATS:
                raise UnsupportedOperationError(f"the cpu target has no kernels for the weight dtype {storage}.")
            formats[name] = FORMATS[storage]
    outer: dict[ir.SSAValue, ir.SSAValue] = {}
    for operation in (each for entry in ir.entries(module).values() for each in ir.walk(entry.body)):
        if isinstance(operation, ir.Kernel):
            outer.update(zip(operation.region.block.args, operation.operands, strict=True))
        elif isinstance(operation, ir.TreeAttention):
            keys.add(operation.symbol)
        elif isinstance(operation, ir.Linear):
            weight = operation.weight
            owner = outer.get(weight, weight).owner
            if isinstance(owner, ir.Parameter) and ir.tensor_type(weight).dtype == "f32":
                formats.setdefault(owner.symbol, FLOAT32)
    block = block_size(module) or BLOCK
    forms = {name: _form(state, block, name in keys) for name, state in ir.states(module).items()}
    return Surroundings(forms, block, formats)


def _form(state: ir.State, block: int, keys: bool) -> Form:
    if state.dtype != "f32":
        raise UnsupportedOperationError(
            f"the cpu target stores states as f32, but @{state.symbol} is {state.dtype}; declare it as f32."
        )
    request = state.per == "request"
    return Form(state.shape, 1 if request else block, keys, "requests" if request else "state")


def plans(function: ir.Function, known: Surroundings) -> list[Plan]:
    """One plan a region."""
    return [Planner(region, known).run() for region in regions(function)]


def structure(plan: Plan, known: Surroundings) -> str:
    """A text that is equal for kernels that differ only in which weights, states and values they work on."""
    names: dict[ir.SSAValue, str] = {}
    lines: list[str] = []
    for inner, outer in plan.region.arguments.items():
        names[inner] = f"a{len(names)}"
        owner = outer.owner
        if isinstance(owner, ir.Constant):
            lines.append(f"{names[inner]} = constant {_parameters(owner)}")
        else:
            lines.append(f"{names[inner]} = {plan.stored[inner]}")
    for operation in plan.region.operations:
        operands = ", ".join(names[each] for each in operation.operands)
        for value in operation.results:
            names[value] = f"v{len(names)}"
        results = ", ".join(f"{names[value]}: {value.type}" for value in operation.results)
        forms = [str(known.states[name]) for name in dict.fromkeys((*operation.reads, *operation.writes))]
        place = "" if not isinstance(operation, ir.Parameter) else f" {plan.stored[operation.result]}"
        lines.append(" ".join([f"{results} = {operation.name}({operands}) {_parameters(operation)}", *forms]) + place)
        if isinstance(operation, ir.Recurrence):
            lines.extend(_body(operation))
    lines.append("yield " + ", ".join(names[inner] for inner, _ in plan.region.results))
    lines.append("slots " + ", ".join(_slot(slot) for slot in plan.slots))
    return "\n".join(lines)


def _body(recurrence: ir.Recurrence) -> list[str]:
    names: dict[ir.SSAValue, str] = {value: f"b{index}" for index, value in enumerate(recurrence.region.block.args)}
    lines: list[str] = []
    for operation in recurrence.body:
        operands = ", ".join(names[each] for each in operation.operands)
        names.update((value, f"b{len(names)}") for value in operation.results)
        results = ", ".join(f"{names[value]}: {value.type}" for value in operation.results)
        symbol = operation.symbol if isinstance(operation, ir.Parameter) else ""
        lines.append(f"  {results} = {operation.name}({operands}) {_parameters(operation)} {symbol}")
    return [*lines, f"  yield {names[recurrence.after]}"]


def _parameters(operation: ir.SpecOperation) -> str:
    extra = {"extra": names} if operation.SEGMENTED and (names := operation.extra()) else {}
    shown = sorted({**operation.decoded(), **extra}.items())
    return str({name: each for name, each in shown if name not in ("symbol", "values")})


def _slot(slot: Slot) -> str:
    return f"scratch{slot.key}" if slot.kind == "scratch" else slot.kind
