"""The plans of a function's regions, and the text by which equal kernels are found."""

from forerun import ir
from forerun.codegen.regions import regions
from forerun.codegen.tvm.formats import FLOAT32, WeightFormat
from forerun.codegen.tvm.phases import Plan, Slot, Surroundings
from forerun.codegen.tvm.planning import Planner
from forerun.codegen.tvm.quantized import FORMATS
from forerun.errors import UnsupportedOperationError


def surroundings(module: ir.ModuleOp, function: ir.Function) -> Surroundings:
    """What planning a function's regions needs to know of the module."""
    blocks: dict[str, int] = {}
    declared = ir.weights(module)
    formats: dict[str, WeightFormat] = {}
    for name, weight in declared.items():
        if storage := weight.storage:
            if storage not in FORMATS:
                raise UnsupportedOperationError(f"the tvm target has no kernels for weights kept as {storage}.")
            formats[name] = FORMATS[storage]
    outer: dict[ir.SSAValue, ir.SSAValue] = {}
    for operation in ir.walk(function.body):
        if isinstance(operation, ir.Kernel):
            outer.update(zip(operation.region.block.args, operation.operands, strict=True))
        elif isinstance(operation, ir.TreeAttention):
            blocks[operation.symbol] = operation.block
        elif isinstance(operation, ir.Linear):
            weight = operation.weight
            owner = outer.get(weight, weight).owner
            if isinstance(owner, ir.Parameter) and ir.tensor_type(weight).dtype == "f32":
                formats.setdefault(owner.symbol, FLOAT32)
    default = next(iter(blocks.values()), 16)
    caches = ir.caches(module)
    return Surroundings(caches, {name: blocks.get(name, default) for name in caches}, formats)


def plans(function: ir.Function, known: Surroundings) -> list[Plan]:
    """One plan a region."""
    return [Planner(region, known).run() for region in regions(function)]


def structure(plan: Plan, known: Surroundings) -> str:
    """A text that is equal for kernels that differ only in which weights, caches and values they work on."""
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
        cache = ""
        if isinstance(operation, ir.CacheWrite | ir.TreeAttention):
            cache = f" {_parameters(known.caches[operation.symbol])} {known.blocks[operation.symbol]}"
        place = "" if not isinstance(operation, ir.Parameter) else f" {plan.stored[operation.result]}"
        lines.append(f"{results} = {operation.name}({operands}) {_parameters(operation)}{cache}{place}")
    lines.append("yield " + ", ".join(names[inner] for inner, _ in plan.region.results))
    lines.append("slots " + ", ".join(_slot(slot) for slot in plan.slots))
    return "\n".join(lines)


def _parameters(operation: ir.SpecOperation) -> str:
    extra = {"extra": names} if operation.SEGMENTED and (names := operation.extra()) else {}
    return str({name: each for name, each in sorted({**operation.decoded(), **extra}.items()) if name != "symbol"})


def _slot(slot: Slot) -> str:
    return f"scratch{slot.key}" if slot.kind == "scratch" else slot.kind
