"""How a caller finds its way in a compiled step: as plain data for `bundle.json`, and as a header for C and C++."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from forerun.codegen.program import Entry, Program
from forerun.codegen.tvm.layout import LINE, state_places, weight_places
from forerun.execute.tvm.calls import Calls, Span

TYPES = """
#pragma once
#include <stdint.h>

typedef struct {
  const char *name;
  const char *dims;  /* separated by blanks: names of sizes, or numbers */
  const char *dtype; /* "f32": in the arena; "i32": an argument in the inputs, a result in the arena */
  int64_t place;     /* in 4-byte numbers */
} forerun_value;

typedef struct {
  const char *name;
  int32_t first, last;            /* its calls */
  const char *const *sizes;       /* the names whose sizes it takes, in this order; the last is 0 */
  const forerun_value *arguments; /* the last has no name */
  const forerun_value *results;   /* the last has no name */
} forerun_entry;

typedef struct {
  const char *name;
  const char *per;       /* "position": in a block's record; "row" or "request": in one of those */
  int64_t place;         /* in its record, in numbers */
  int64_t lead;          /* rows of every slot */
  int64_t last;          /* numbers in a row */
  int64_t stride;        /* from one number of a row to the next */
  int64_t slot_stride;   /* from a slot's row to the same row of the next slot */
  int64_t lead_stride;   /* from a row of a slot to its next row */
} forerun_state;
"""


@dataclass(frozen=True)
class Place:
    """An argument or a result of an entry."""

    name: str
    dims: tuple[str, ...]
    dtype: str
    place: int


@dataclass(frozen=True)
class EntryPlaces:
    """An entry: its span of the calls, the names whose sizes it takes, its arguments and its results."""

    calls: Span
    sizes: tuple[str, ...]
    arguments: tuple[Place, ...]
    results: tuple[Place, ...]


@dataclass(frozen=True)
class StatePlace:
    """A state in its record: number i of row r of slot s is at place + r * lead_stride + s * slot_stride + i * stride.

    A state of a row or a request has one slot.
    """

    per: str
    place: int
    lead: int
    last: int
    stride: int
    slot_stride: int
    lead_stride: int


@dataclass(frozen=True)
class Layout:
    """All that a caller needs besides the weights and the code. Sizes and places are in 4-byte numbers."""

    weights: int  # size of the weights, as they lie in their file
    arena: int
    inputs: int
    record: int  # size of the record that all states of a block share
    request: int  # size of the record of a row or a request
    table: int  # the widest block table
    entries: Mapping[str, EntryPlaces]
    states: Mapping[str, StatePlace]
    calls: tuple[tuple[int, ...], ...]


def layout_of(step: Program) -> Layout:
    """Returns the layout of a step."""
    (weights, size), states = weight_places(step), state_places(step)
    calls = Calls(step, weights, states)
    return Layout(
        weights=size,
        arena=max(1, step.arena),
        inputs=max(1, *(each.inputs for each in step.entries)),
        record=states.record,
        request=states.request,
        table=step.tables,
        entries={each.name: _entry(each, calls.of_entry(each.name)) for each in step.entries},
        states={name: _state(step, name, states.places[name]) for name in step.states},
        calls=tuple(tuple(row) for row in calls.array.tolist()),
    )


def _entry(entry: Entry, span: Span) -> EntryPlaces:
    arguments = tuple(
        Place(each.name, tuple(map(str, each.dims)), each.dtype, entry.places[each.name])
        for each in entry.signature.arguments
    )
    results = tuple(Place(each.name, tuple(map(str, each.dims)), each.dtype, each.place) for each in entry.returned)
    return EntryPlaces(span, entry.sizes, arguments, results)


def _state(step: Program, name: str, place: int) -> StatePlace:
    state = step.states[name]
    lead, last = state.numbers // state.last, state.last
    if state.per != "position":
        return StatePlace(state.per, place, lead, last, 1, state.numbers, last)
    block, padded = step.block, state.dims[-1]
    if state.side_by_side:
        return StatePlace(state.per, place, lead, last, block, 1, last * block)
    return StatePlace(state.per, place, lead, last, 1, padded, block * padded)


def header(step: Program, layout: Layout, eos_token_ids: Sequence[int]) -> str:
    """Returns the header of a step, for C11 and C++17."""
    limits = {
        "block": step.block, "max_rows": step.max_rows, "max_outputs": step.max_outputs, "max_path": step.max_path,
        "max_length": step.max_length, "vocabulary": step.vocabulary, "candidates": step.candidates,
        "table": layout.table, "line": LINE,
    }  # fmt: skip
    sizes = {name: getattr(layout, name) for name in ("weights", "arena", "inputs", "record", "request")}
    lines = ["/* What a caller of step.so needs to know; docs/bundle.md of forerun describes it. */", TYPES]
    lines += ["enum {", *(f"  FORERUN_{name.upper()} = {value}," for name, value in limits.items()), "};", ""]
    lines += [f"static const int64_t forerun_{name} = {value};" for name, value in sizes.items()]
    lines += [f"static const int32_t forerun_eos[] = {_braces([*map(str, eos_token_ids), '-1'])};", ""]
    for name, entry in layout.entries.items():
        own = f"forerun_{_identifier(name)}"
        names = _braces([*map(_quoted, entry.sizes), "0"])
        lines += [
            f"static const char *const {own}_sizes[] = {names};",
            *_values(f"{own}_arguments", entry.arguments),
            *_values(f"{own}_results", entry.results),
            f"static const forerun_entry {own} = {{{_quoted(name)}, {entry.calls[0]}, {entry.calls[1]}, {own}_sizes, "
            f"{own}_arguments, {own}_results}};",
            "",
        ]
    lines += ["static const forerun_state forerun_states[] = {"]
    for name, state in layout.states.items():
        numbers = (state.place, state.lead, state.last, state.stride, state.slot_stride, state.lead_stride)
        lines += [f"  {_braces([_quoted(name), _quoted(state.per), *map(str, numbers)])},"]
    lines += ["  {0, 0, 0, 0, 0, 0, 0, 0},", "};", ""]
    width = len(layout.calls[0]) if layout.calls else 1
    lines += [f"static const int64_t forerun_calls[{max(1, len(layout.calls))}][{width}] = {{"]
    lines += [f"  {_braces(map(str, row))}," for row in layout.calls or ((0,),)]
    return "\n".join([*lines, "};", ""])


def _values(name: str, values: Iterable[Place]) -> list[str]:
    rows = [
        f"  {_braces([*map(_quoted, (each.name, ' '.join(each.dims), each.dtype)), str(each.place)])},"
        for each in values
    ]
    return [f"static const forerun_value {name}[] = {{", *rows, "  {0, 0, 0, 0},", "};"]


def _braces(parts: Iterable[str]) -> str:
    return f"{{{', '.join(parts)}}}"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _identifier(name: str) -> str:
    return "".join(each if each.isalnum() else "_" for each in name)
