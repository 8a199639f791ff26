"""From a module to an ExportedProgram: `input_ids[1, T] -> logits[1, T, V]` with a dynamic T."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from transformers import GenerationMixin

from forerun.errors import TraceError, first_sentence
from forerun.frontends.every_place import EveryPlace
from forerun.frontends.forward import (
    LONGEST,
    SHORTEST,
    require_counts,
    require_logits,
    require_range,
    require_tokens,
)
from forerun.frontends.quiet import print_unless_quiet, quiet_libraries
from forerun.frontends.sizes import traced_sizes
from forerun.frontends.stateless import require_stateless

# torch prints the graph of a failed trace, even if the error is handled; its module's own `print` looks at the thread.
setattr(import_module("torch.export._trace"), "print", print_unless_quiet)  # noqa: B010

# Primes: no size of a model is likely to equal one, so a coincidence of sizes is not taken for a rule.
EXAMPLE_LENGTHS = (11, SHORTEST, 67)
SPECIALISED = "Constraints violated"  # how torch.export says that a dynamic dimension came out fixed
DEPENDS_ON_DATA = "data-dependent"  # how it says that a size or a branch does
EQUAL = 1e-4
"""Of the largest logit: sums in another order may differ by so much."""


INNER = "model."
"""What precedes the names of a model's own weights in its traced program: the attribute of `TokenLogits`."""


class TokenLogits(nn.Module):
    """A model as a function of token ids alone: no cache, no mask, one tensor out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.eval()
        accepted = inspect.signature(model.forward).parameters
        self.keywords: dict[str, Any] = {"use_cache": False} if "use_cache" in accepted else {}
        self.positions = takes_positions(model)

    def forward(self, input_ids: Tensor) -> Tensor:
        """`input_ids[1, T] -> logits[1, T, V]`."""
        positions = (
            {"position_ids": torch.arange(input_ids.shape[1], device=input_ids.device)[None]} if self.positions else {}
        )
        output = self.model(input_ids, **self.keywords, **positions)
        if isinstance(output, Tensor):
            return output
        logits = output[0] if isinstance(output, tuple) else getattr(output, "logits", None)
        if not isinstance(logits, Tensor):
            raise TraceError(
                f"{type(self.model).__name__} returns {type(output).__name__} without logits: "
                f"its forward(input_ids) must return the logits or an object with .logits."
            )
        return logits


def takes_positions(model: nn.Module) -> bool:
    """Whether transformers' `generate` gives a model the positions 0, 1, ... instead of leaving them to it.

    Some models number positions otherwise if they are not told; their texts are those of `generate`.
    """
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return False
    own, usual = (
        getattr(each, "_prepare_position_ids_for_generation", None) for each in (type(model), GenerationMixin)
    )
    return own is not None and own is usual and not getattr(getattr(model, "config", None), "is_encoder_decoder", False)


def trace_module(module: TokenLogits, name: str, max_length: int) -> ExportedProgram:
    """Export the module for every T up to `max_length`, or raise `TraceError` with the reason."""
    require_stateless(module, name)
    lengths = [each for each in EXAMPLE_LENGTHS if each <= max_length]
    if not lengths:
        raise TraceError(f"max_length={max_length} is too short to trace {name}: give at least {SHORTEST}.")
    found = _traced(module, name, max_length, lengths, None)
    counts = _has_unknown_sizes(found) if isinstance(found, ExportedProgram) else DEPENDS_ON_DATA in str(found)
    if counts:
        placed = _traced(module, name, max_length, lengths, EveryPlace())
        known = isinstance(placed, ExportedProgram) and not _has_unknown_sizes(placed)
        found = placed if known or isinstance(placed, TraceError) else found
    if isinstance(found, ExportedProgram):
        return found
    if isinstance(found, TraceError):
        raise found
    if SPECIALISED in str(found):
        raise TraceError(
            f"{name} fixes the sequence length when it is traced: its forward(input_ids) must work for any T."
        ) from found
    raise TraceError(
        f"torch.export cannot trace {name} ({first_sentence(found)}): "
        f"its forward(input_ids) must run for any length without branching on values."
    ) from found


def _traced(
    module: TokenLogits, name: str, max_length: int, lengths: Sequence[int], places: EveryPlace | None
) -> ExportedProgram | Exception:
    """Returns the program of the first example length that works, or what is most worth saying of those that fail."""
    failure: Exception | None = None
    for length in lengths:
        try:
            program = _export(module, length, max_length, places)
            check_program(program, name, max_length)
            if places is not None:
                _require_equal(program, module, name, max_length)
            return program
        except TraceError as error:
            failure = error if failure is None or not isinstance(failure, TraceError) else failure
        except Exception as error:
            failure = failure or error
    assert failure is not None
    return failure


def check_program(program: ExportedProgram, name: str, max_length: int) -> None:
    """Raise `TraceError` unless the program is `input_ids[1, T] -> logits[1, T, V]` for every T up to `max_length`."""
    inputs = _placeholders(program, InputKind.USER_INPUT)
    outputs = [spec for spec in program.graph_signature.output_specs if spec.kind == OutputKind.USER_OUTPUT]
    require_counts(name, len(inputs), len(outputs))
    if any(spec.kind != OutputKind.USER_OUTPUT for spec in program.graph_signature.output_specs):
        raise TraceError(f"{name} changes its own buffers as it runs: export it without a cache (use_cache=False).")
    tokens = inputs[0].meta["val"]
    require_tokens(name, traced_sizes(tokens.shape))
    limits = program.range_constraints.get(tokens.shape[1].node.expr)
    if limits is not None:
        least, most = int(limits.lower), int(min(limits.upper, LONGEST))
        require_range(name, least, most, max_length, _table_of(program, most) if most < max_length else "")
    value = first_result(program)
    require_logits(name, [] if value is None else traced_sizes(value.shape), str(tokens.shape[1]))


def first_result(program: ExportedProgram) -> Tensor | None:
    """The first result of a program as it was traced, if it is a tensor."""
    output = next(node for node in program.graph.nodes if node.op == "output").args[0][0]
    value = output.meta.get("val") if isinstance(output, torch.fx.Node) else None
    return value if isinstance(value, Tensor) else None


def _table_of(program: ExportedProgram, size: int) -> str:
    """A description of the tensor with that number of rows that the program slices, if any."""
    names = {spec.arg.name: str(spec.target).removeprefix("model.") for spec in program.graph_signature.input_specs}
    for node in program.graph.nodes:
        source = node.args[0] if node.op == "call_function" and node.args else None
        if not isinstance(source, torch.fx.Node) or source.name not in names:
            continue
        if any(word in str(node.target) for word in ("slice", "narrow")) and size in source.meta["val"].shape:
            return f" by its {names[source.name]} of {size} entries"
    return ""


def _export(module: TokenLogits, length: int, max_length: int, places: EveryPlace | None) -> ExportedProgram:
    device = next((tensor.device for tensor in module.parameters()), torch.device("cpu"))
    example = torch.arange(1, length + 1, device=device)[None]  # [1, length]
    dynamic = Dim.DYNAMIC(max=max_length)  # pyright: ignore[reportCallIssue]
    with torch.no_grad(), quiet_libraries(), places or nullcontext():
        return torch.export.export(module, (example,), dynamic_shapes=({1: dynamic},), strict=False)


def _compared_texts(vocabulary: int, longest: int) -> Iterator[Tensor]:
    """Texts [1, T] in which all, some or none of the tokens fulfil a condition."""
    generator = torch.Generator().manual_seed(0)
    for length in sorted({SHORTEST, min(11, longest), longest}):
        yield torch.randint(0, vocabulary, (1, length), generator=generator)
    others = torch.randint(0, vocabulary, (4,), generator=generator).tolist()
    for token in (0, vocabulary // 2, vocabulary - 1, *others):
        yield torch.full((1, SHORTEST), token)
        mixed = torch.randint(0, vocabulary, (1, min(11, longest)), generator=generator)
        mixed[:, ::2] = token
        yield mixed


def _has_unknown_sizes(program: ExportedProgram) -> bool:
    """Whether sizes in a program are known only when it runs."""
    return any("unbacked_bindings" in node.meta for node in program.graph.nodes)


def _require_equal(program: ExportedProgram, module: TokenLogits, name: str, max_length: int) -> None:
    """Raises `TraceError` unless a program that takes all places for those where values are true gives equal logits."""
    traced = program.module()
    logits = first_result(program)
    assert logits is not None
    for tokens in _compared_texts(int(logits.shape[-1]), min(EXAMPLE_LENGTHS[-1], max_length)):
        with torch.no_grad(), quiet_libraries():
            found, expected = traced(tokens), module(tokens)
        error = float((found - expected).abs().max())
        if not error <= EQUAL * float(expected.abs().max()):
            raise TraceError(
                f"{name} does more with the places where values are true than to add what is computed at them: traced "
                f"for all places, its logits differ by {error:.2g}."
            )


def _placeholders(program: ExportedProgram, kind: InputKind) -> list[torch.fx.Node]:
    names = {spec.arg.name for spec in program.graph_signature.input_specs if spec.kind == kind}
    return [node for node in program.graph.nodes if node.op == "placeholder" and node.name in names]
