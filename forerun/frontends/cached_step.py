"""From a module with a cache to its step over one token: `token[1, 1], states -> logits[1, 1, V], states`.

Where a forward pass over T positions cannot be traced, or has recurrences, the model is traced as it decodes, with its
own cache. The cache's tensors are found wherever they lie in it, and become the arguments and results of the step. An
`nn.Module` with `forward(token, states) -> logits, states` and `initial_states()` is such a step already.
"""

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from forerun.errors import TraceError, first_sentence
from forerun.frontends.forward import LONGEST, require_range
from forerun.frontends.huggingface import keep_all_positions
from forerun.frontends.quiet import quiet_libraries
from forerun.frontends.tracing import first_result, takes_positions

CACHED = "cached"
"""The name of the traced step among a module's functions."""
LENGTHS = (3, 5)
"""Prefixes of different lengths, by which states that grow are told from others: shorter than any window."""
LEAST = 2
"""torch.export takes shorter texts for special cases."""
CHECKED = 11
"""The tokens on which a traced step is compared with the model's forward pass."""
TOLERANCE = 1e-3
"""Of the largest logit: models sum up a prompt in another order than single tokens."""

Path = tuple[Any, ...]
"""Where a tensor lies in a cache: attribute names, keys and places."""


@dataclass(frozen=True)
class CacheTensors:
    """The tensors of a model's cache, by where they lie in it.

    keyword   the argument of the model's forward that takes the cache, and the output that returns it
    grows     for each tensor, the axis that is longer after a longer prefix; None if its shape stays
    """

    keyword: str
    paths: tuple[Path, ...]
    grows: tuple[int | None, ...]


class CachedStep(nn.Module):
    """A model as a function of one token and its states."""

    def __init__(self, model: nn.Module, tensors: CacheTensors, cache: Any) -> None:
        super().__init__()
        self.model, self.tensors = model, tensors
        empty = copy.deepcopy(cache)
        for path in tensors.paths:
            _put(empty, path, None)
        self._takes_positions = takes_positions(model)
        self._template = [empty]  # in a list, so that it is no submodule

    def forward(self, token: Tensor, states: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """`token[1, 1], states -> logits[1, 1, V], states`; the given states stay as they are."""
        settings = (_get(self._template[0], path) for path in _paths(self._template[0]))
        cache = copy.deepcopy(self._template[0], {id(each): each for each in settings})  # tensors that stay are shared
        for path, state in zip(self.tensors.paths, states, strict=True):
            _put(cache, path, state.clone())
        given = {self.tensors.keyword: cache, **self._positions(states)}
        output = self.model(token, use_cache=True, **given)
        returned = output[self.tensors.keyword]
        return output["logits"], [_get(returned, path) for path in self.tensors.paths]

    def _positions(self, states: Sequence[Tensor]) -> dict[str, Tensor]:
        """The token's position, as a model's own generation gives it: the length of a state that grows."""
        if not self._takes_positions:
            return {}
        lengths = (each.shape[axis] for each, axis in zip(states, self.tensors.grows, strict=True) if axis is not None)
        length = next(lengths, None)
        return {} if length is None else {"position_ids": torch.arange(length, length + 1)[None]}


@dataclass(frozen=True)
class OpenedStep:
    """A model with its step over one token.

    step     the step: the model itself, if it is one
    states   its states after a few tokens
    first    its states before the first token
    grows    for each state, the axis that is longer after a longer text; None if its shape stays
    """

    model: nn.Module
    step: nn.Module
    states: list[Tensor]
    first: list[Tensor]
    grows: tuple[int | None, ...]

    @property
    def is_recurrent(self) -> bool:
        """Whether the model was given as a step, or holds states that do not grow with the text."""
        return self.step is self.model or None in self.grows

    def trace(self, name: str, max_length: int) -> ExportedProgram:
        """Traces the step. Raises `TraceError` with what stands in the way."""
        length: Any = Dim.AUTO(min=LEAST, max=max(3, max_length - 1))  # pyright: ignore[reportCallIssue]
        dynamic = [{} if axis is None else {axis: length} for axis in self.grows]
        try:
            with torch.no_grad(), quiet_libraries():
                given = (torch.tensor([[1]]), self.states)
                program = torch.export.export(self.step, given, dynamic_shapes=({}, dynamic), strict=False)
                program = program.run_decompositions({})
        except Exception as error:
            raise TraceError(
                f"torch.export cannot trace one step of {name} with its states ({first_sentence(error)}): it must run "
                "for one token without branching on values."
            ) from error
        self._require_lengths(program, name, max_length)
        try:
            self._require_equal(program, name)
        except (AssertionError, RuntimeError) as error:
            raise TraceError(
                f"one step of {name} with its states does not run for any length ({first_sentence(error)})."
            ) from error
        return program

    def _require_lengths(self, program: ExportedProgram, name: str, max_length: int) -> None:
        """Raises `TraceError` if code that branches on the length of a state was traced for fewer positions."""
        given = [node.meta["val"] for node in program.graph.nodes if node.name in program.graph_signature.user_inputs]
        for state, axis in zip(given[1:], self.grows, strict=True):
            size = 0 if axis is None else state.shape[axis]
            if isinstance(size, torch.SymInt) and (limits := program.range_constraints.get(size.node.expr)) is not None:
                require_range(name, 0, int(min(limits.upper, LONGEST)) + 1, max_length)

    def _require_equal(self, program: ExportedProgram, name: str) -> None:
        """Raises `TraceError` unless the traced step gives the model's own logits, from its first states on."""
        logits = first_result(program)
        assert logits is not None
        tokens = torch.arange(1, CHECKED + 1)[None] * 7 % (min(97, int(logits.shape[-1])) - 1) + 1
        traced = program.module()
        with torch.no_grad(), quiet_libraries():
            given, own = self.first, self.first
            whole = None if self.step is self.model else self.model(tokens, use_cache=False)["logits"][0]
            for at in range(CHECKED):
                token = tokens[:, at : at + 1]
                step = self.step if at < LEAST else traced
                if whole is None:
                    (logits, given), (expected, own) = step(token, given), self.model(token, own)
                    expected = expected[0, -1]
                else:
                    (logits, given), expected = step(token, given), whole[at]
                error = float((logits[0, -1] - expected).abs().max())
                if not error <= TOLERANCE * float(expected.abs().max()):
                    raise TraceError(
                        f"one step of {name} with its states gives other logits than its forward pass (by "
                        f"{error:.2g}): the states hold less than what it reads, or the model computes a prompt in "
                        "another way than single tokens."
                    )


def open_step(model: nn.Module) -> OpenedStep:
    """Finds a model's states by running it for a few tokens. Raises `TraceError` if it shows none."""
    if is_step(model):
        return _given_step(model)
    tensors, cache = _probe(model)
    states = [_get(cache, path) for path in tensors.paths]
    first = [_first(each, axis) for each, axis in zip(states, tensors.grows, strict=True)]
    return OpenedStep(model, CachedStep(model, tensors, cache), states, first, tensors.grows)


def is_step(model: nn.Module) -> bool:
    """Whether a module is given as a step over one token."""
    return list(inspect.signature(model.forward).parameters) == ["token", "states"]


def _given_step(model: nn.Module) -> OpenedStep:
    """A model that is a step already. Raises `TraceError` for states that do not begin empty or with zeros."""
    initial: Any = getattr(model, "initial_states", None)
    if not callable(initial):
        raise TraceError(
            f"{type(model).__name__} takes a token and states, but has no initial_states(): return the states before "
            "the first token, zero, or empty along the axis that grows."
        )
    first: list[Tensor] = list(cast(Any, initial()))
    if any(bool(each.count_nonzero()) for each in first):
        raise TraceError(
            f"{type(model).__name__} has initial states other than zero: keep what differs in the weights instead."
        )
    states = first
    with torch.no_grad():
        for token in range(1, LENGTHS[0] + 1):
            _, states = model(torch.tensor([[token]]), states)
    grows = tuple(_longer(old.shape, new.shape) for old, new in zip(first, states, strict=True))
    return OpenedStep(model, model, list(states), first, grows)


def _probe(model: nn.Module) -> tuple[CacheTensors, Any]:
    """Returns where a model keeps its states, and the cache after the longer prefix."""
    accepted = inspect.signature(model.forward).parameters
    if "use_cache" not in accepted and all(each.kind is not each.VAR_KEYWORD for each in accepted.values()):
        raise TraceError(f"the forward of {type(model).__name__} takes no use_cache: its states are not known.")
    tokens = torch.arange(1, LENGTHS[1] + 1)[None]
    try:
        with torch.no_grad(), quiet_libraries():
            short, long = (model(tokens[:, :length], use_cache=True) for length in LENGTHS)
    except Exception as error:
        raise TraceError(
            f"{type(model).__name__} does not run with a cache ({first_sentence(error)}): its states are not known."
        ) from error
    for keyword in accepted:
        before, cache = (each.get(keyword) if isinstance(each, Mapping) else None for each in (short, long))
        for each in (before, cache):
            keep_all_positions(each)
        if {*_paths(before)} != {*_paths(cache)}:
            raise TraceError(f"{type(model).__name__} adds tensors to its cache as a text grows: its states vary.")
        pairs = {path: (_get(before, path), _get(cache, path)) for path in _paths(cache)}
        states = {path: pair for path, pair in pairs.items() if not torch.equal(*pair)}  # others are settings
        if states:
            grows = tuple(_longer(old.shape, new.shape) for old, new in states.values())
            return CacheTensors(keyword, tuple(states), grows), cache
    raise TraceError(f"{type(model).__name__} returns no cache: its states are not known.")


def _longer(short: torch.Size, long: torch.Size) -> int | None:
    """The axis along which one shape is longer than another."""
    return next((axis for axis, (one, other) in enumerate(zip(short, long, strict=True)) if one != other), None)


def _first(state: Tensor, axis: int | None) -> Tensor:
    """Returns a state before the first token: empty if it grows, else zero."""
    return torch.zeros([0 if at == axis else size for at, size in enumerate(state.shape)], dtype=state.dtype)


def _paths(found: Any, path: Path = (), seen: set[int] | None = None) -> Iterator[Path]:
    """Yields where the tensors of an object lie: in attributes, lists and mappings, each object once."""
    seen = set() if seen is None else seen
    if isinstance(found, Tensor):
        yield path
        return
    if id(found) in seen or isinstance(found, type):
        return
    seen.add(id(found))
    items: list[tuple[Any, Any]] = []
    if isinstance(found, Mapping):
        items = list(found.items())
    elif isinstance(found, (list, tuple)):
        items = list(enumerate(found))
    elif hasattr(found, "__dict__"):
        items = list(vars(found).items())
    for key, value in items:
        yield from _paths(value, (*path, key), seen)


def _get(found: Any, path: Path) -> Any:
    for key in path:
        found = found[key] if isinstance(found, (Mapping, list, tuple)) else getattr(found, key)
    return found


def _put(found: Any, path: Path, value: Any) -> None:
    owner = _get(found, path[:-1])
    if isinstance(owner, (dict, list)):
        owner[path[-1]] = value
    elif isinstance(owner, tuple):
        items = cast("tuple[Any, ...]", owner)
        _put(found, path[:-1], (*items[: path[-1]], value, *items[path[-1] + 1 :]))
    else:
        setattr(owner, path[-1], value)
