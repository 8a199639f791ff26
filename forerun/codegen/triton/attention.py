"""Position-aligned tree attention: online softmax over blocks of absolute positions, in splits at fixed positions.

A tile has 16 lanes: the query heads of one key head, for as many rows as fit. It goes through one split in order. Where
all its rows have committed a block of one sequence, the block's keys are loaded once for all lanes; elsewhere row by
row, each position from wherever it lies, with the same instructions, and a lane keeps its own row's result. A split
that all rows of several tiles have committed is taken by one program for all of them over one load (`together`), with
the same instructions again. So the arithmetic of a (row, position) is the same wherever its key lies. Invisible keys
have weight exactly 0. Sums over keys are kept a lane a key, and added as a tree at the split's end; `combine` then adds
the splits in order.
"""

from __future__ import annotations

from typing import Any

from forerun import ir
from forerun.codegen.triton.attention_shape import LANES, Shape, padded
from forerun.codegen.triton.expressions import TRITON_TYPES, Expressions, Slot, Stored
from forerun.codegen.triton.index import Index, Lane
from forerun.codegen.triton.rules import literal
from forerun.codegen.triton.storing import state_place


class AttentionText:
    """Writes the kernel of a tree attention; `shared` tiles take a committed split over one load."""

    def __init__(self, operation: ir.TreeAttention, shape: Shape, known: Any, scratch: tuple[Stored, Stored]) -> None:
        self.operation, self.shape, self.known, self.scratch = operation, shape, known, scratch

    def describe(self) -> str:
        shape = self.shape
        return (
            f"tree attention, {shape.heads} heads over {shape.groups} of {shape.key_dim} and {shape.value_dim} in "
            f"{shape.element}, splits of {shape.split} positions"
        )

    def emit(self, context: Expressions, shared: int) -> None:
        """Grid (splits, key heads, shared tiles and then own tiles)."""
        context.size("N")
        context.line(f"start = tl.program_id(0) * {self.shape.split}")
        context.line("group = tl.program_id(1)")
        if shared == 1:
            context.line("tile = tl.program_id(2)")
            self._own(context, 1)
            return
        context.line(f"count = (tl.num_programs(2) + {shared}) // {shared + 1}")
        context.line("program = tl.program_id(2)")
        with context.block("if program < count:"):
            self._together(context, shared)
        with context.block("else:"):
            context.line("tile = program - count")
            self._own(context, shared)

    # --- lanes

    def _lanes(self, context: Expressions, tile: str, suffix: str) -> None:
        """The rows of a tile's lanes, all [16, 1]."""
        shape, depth = self.shape, len(context.scopes) - 1
        context.line(f"lane = tl.arange(0, {LANES})[:, None]")
        context.line(f"own_row{suffix} = lane // {shape.together}")
        if shape.head_tiles == 1:
            context.line(f"row{suffix} = ({tile}) * {shape.rows} + own_row{suffix}")
            context.line(f"member{suffix} = lane % {shape.together}")
        else:
            context.line(f"row{suffix} = ({tile}) // {shape.head_tiles} * {shape.rows} + own_row{suffix}")
            context.line(f"member{suffix} = ({tile}) % {shape.head_tiles} * {shape.together} + lane % {shape.together}")
        ragged = f" & (member{suffix} < {shape.members})" if shape.members % shape.together else ""
        context.line(f"lane_in{suffix} = (own_row{suffix} < {shape.rows}) & (row{suffix} < N){ragged}")
        positions = self._input(context, "positions", 1)
        context.line(f"position{suffix} = tl.load({positions} + row{suffix}, mask=lane_in{suffix}, other=-1)")
        guards = frozenset({f"lane_in{suffix}"})
        row = Index.of(Lane(f"row{suffix}", None, guards, depth))
        if self.operation.first is not None:
            first = context.element(self.operation.first, [row])
            context.line(f"first{suffix} = tl.where(lane_in{suffix}, {first.text}, 2147483647)")
        head = Index.of(Lane(f"(group * {shape.members} + member{suffix})", shape.heads, guards, depth))
        kept = " & ".join(sorted(guards))
        for number, (start, size) in enumerate(shape.parts):
            name = f"feature_{number}"
            inside = frozenset({f"{name}_in[None, :]"}) if start + size > shape.key_dim else frozenset[str]()
            context.line(f"{name} = {start} + tl.arange(0, {size})")
            if inside:
                context.line(f"{name}_in = {name} < {shape.key_dim}")
            dim = Index.of(Lane(f"{name}[None, :]", shape.key_dim, inside, depth, True))
            query = context.element(self.operation.query, [row, head, dim])
            mask = " & ".join([kept, *inside])
            kind = TRITON_TYPES[shape.element]
            context.line(f"query{suffix}_{number} = tl.where({mask}, {query.text}, 0.0).to({kind})")
        context.line(f'largest{suffix} = tl.full([{LANES}, 1], float("-inf"), tl.float32)')
        context.line(f"total{suffix} = tl.full([{LANES}, {self.shape.keys}], 0.0, tl.float32)")
        context.line(f"sums{suffix} = tl.full([{LANES}, {padded(shape.value_dim)}], 0.0, tl.float32)")

    def _input(self, context: Expressions, name: str, operand: int) -> str:
        stored = context.stored[self.operation.operands[operand]]
        assert stored.slot == Slot("input", name)
        return context.argument(stored.slot, "i32")

    # --- bodies

    def _together(self, context: Expressions, shared: int) -> None:
        """A split that all rows of the program's tiles have committed, in one sequence."""
        self._committed(context, "program", shared)
        with context.block("if committed:"):
            suffixes = [f"_{number}" for number in range(shared)]
            for number, suffix in enumerate(suffixes):
                self._lanes(context, f"program * {shared} + {number}", suffix)
            with context.block(f"for begin in range(start, start + {self.shape.split}, {self.shape.keys}):"):
                context.line(f"at = begin + tl.arange(0, {self.shape.keys})[None, :]")
                self._slots(context, "sequence")
                self._load_keys(context)
                # Keys that all rows have committed are visible to all, but for windows.
                hides = self.operation.first is not None or self.operation.bias is not None
                for suffix in suffixes:
                    self._score(context, suffix, "score")
                    self._weigh(context, suffix, hides)
                    context.line(f"weight{suffix} = weight.to({TRITON_TYPES[self.shape.element]})")
                self._load_values(context)
                for suffix in suffixes:
                    context.line(f'sums{suffix} = tl.dot(weight{suffix}, value, sums{suffix}, input_precision="ieee")')
            for suffix in suffixes:
                self._finish(context, suffix)

    def _own(self, context: Expressions, shared: int) -> None:
        """One tile's split, unless its tiles' rows have all committed it."""
        if shared > 1:
            self._committed(context, f"tile // {shared}", shared)
            with context.block("if committed == 0:"):
                self._one(context)
        else:
            self._one(context)

    def _one(self, context: Expressions) -> None:
        shape = self.shape
        self._lanes(context, "tile", "")
        sequences, bases = self._input(context, "sequences", 2), self._input(context, "bases", 3)
        context.line(f"base = tl.load({bases} + row, mask=lane_in, other=2147483647)")
        context.line(f"sequence_low = tl.min(tl.load({sequences} + row, mask=lane_in, other=2147483647))")
        context.line(f"sequence_high = tl.max(tl.load({sequences} + row, mask=lane_in, other=-1))")
        context.line("common = tl.where(sequence_low == sequence_high, tl.min(base), 0)")
        context.line(f"stop = tl.minimum(start + {shape.split}, tl.max(position) + 1)")
        begin = "start"
        if self.operation.first is not None:
            context.line(f"begin_at = tl.maximum(start, tl.min(first) // {self.shape.keys} * {self.shape.keys})")
            begin = "begin_at"
        with context.block(f"for begin in range({begin}, stop, {self.shape.keys}):"):
            context.line(f"at = begin + tl.arange(0, {self.shape.keys})[None, :]")
            with context.block(f"if begin + {self.shape.keys} <= common:"):
                self._slots(context, "sequence_low")
                self._load_keys(context)
                self._score(context, "", "score")
            with context.block("else:"):
                context.line(f"score = tl.full([{LANES}, {self.shape.keys}], 0.0, tl.float32)")
                with context.block(f"for one in range({shape.rows}):"):
                    self._row_slots(context)
                    self._load_keys(context)
                    self._score(context, "", "found")
                    context.line("score = tl.where(own_row == one, found, score)")
            self._weigh(context, "", True)
            context.line(f"rounded = weight.to({TRITON_TYPES[shape.element]})")
            with context.block(f"if begin + {self.shape.keys} <= common:"):
                self._slots(context, "sequence_low")
                self._load_values(context)
                context.line('sums = tl.dot(rounded, value, sums, input_precision="ieee")')
            with context.block("else:"):
                context.line("before = sums")
                with context.block(f"for one in range({shape.rows}):"):
                    self._row_slots(context)
                    self._load_values(context)
                    context.line('added = tl.dot(rounded, value, before, input_precision="ieee")')
                    context.line("sums = tl.where(own_row == one, added, sums)")
        with context.block(f"if {begin} < stop:"):
            self._finish(context, "")

    def _committed(self, context: Expressions, tile: str, shared: int) -> None:
        """Whether the rows of some tiles are of one sequence and have committed all of the split."""
        shape = self.shape
        groups = shared if shape.head_tiles == 1 else (shared - 1) // shape.head_tiles + 2
        rows = groups * shape.rows
        wide = 1 << (rows - 1).bit_length()
        sequences, bases = self._input(context, "sequences", 2), self._input(context, "bases", 3)
        context.line(f"many = tl.arange(0, {wide})")
        context.line(f"many_row = ({tile}) * {shared} // {shape.head_tiles} * {shape.rows} + many")
        context.line(f"many_in = (many < {rows}) & (many_row < N)")
        context.line(f"sequence = tl.min(tl.load({sequences} + many_row, mask=many_in, other=2147483647))")
        context.line(f"other = tl.max(tl.load({sequences} + many_row, mask=many_in, other=-1))")
        context.line(f"bound = tl.min(tl.load({bases} + many_row, mask=many_in, other=2147483647))")
        context.line(f"committed = (sequence == other) & (start + {shape.split} <= bound)")

    # --- pieces

    def _slots(self, context: Expressions, sequence: str) -> None:
        """Finds the slots of positions `at` in the blocks of a sequence."""
        shape, tables = self.shape, self._input(context, "block_tables", 5)
        place = f"{tables} + {sequence} * {shape.tables} + at // {shape.block}"
        context.line(f"slot = tl.load({place}) * {shape.block} + at % {shape.block}")
        context.line("there = at >= 0")

    def _row_slots(self, context: Expressions) -> None:
        """Finds the slots of positions `at` in the history of row `one`: in blocks below its base, then in its path."""
        shape = self.shape
        names = [self._input(context, *each) for each in (("positions", 1), ("sequences", 2), ("bases", 3))]
        context.line(f"own = tile // {shape.head_tiles} * {shape.rows} + one")
        for variable, name, other in zip(("own_position", "own_sequence", "own_base"), names, (-1, 0, 0), strict=True):
            context.line(f"{variable} = tl.load({name} + own, mask=own < N, other={other})")
        context.line("there = at <= own_position")
        tables, paths = self._input(context, "block_tables", 5), self._input(context, "paths", 4)
        context.line(
            f"block = tl.load({tables} + own_sequence * {shape.tables} + at // {shape.block}, "
            "mask=there & (at < own_base), other=0)"
        )
        context.line(
            f"slot = tl.load({paths} + own * {shape.path} + at - own_base, mask=there & (at >= own_base), other=0)"
        )
        context.line(f"slot = tl.where(at < own_base, block * {shape.block} + at % {shape.block}, slot)")

    def _record(self, dim: int) -> str:
        shape = self.shape
        block = f"((slot // {shape.block}).to(tl.int64) * {shape.groups} + group)"
        return f"({block} * {shape.block} + slot % {shape.block}) * {dim}"

    def _load_keys(self, context: Expressions) -> None:
        """key_i [features of the part, keys]"""
        place = state_place(self.operation.symbol, self.known)
        name, size = context.argument(place.slot, place.element), self.shape.key_dim
        context.line(f"record = {self._record(size)}")
        for number, (start, count) in enumerate(self.shape.parts):
            context.line(f"part = {start} + tl.arange(0, {count})[:, None]")
            inside = f" & (part < {size})" if start + count > size else ""
            context.line(f"key_{number} = tl.load({name} + record + part, mask=there{inside}, other=0.0)")

    def _score(self, context: Expressions, suffix: str, name: str) -> None:
        """q k^T, the parts of the features in one chain."""
        total = ""
        for number in range(len(self.shape.parts)):
            context.line(f'{name} = tl.dot(query{suffix}_{number}, key_{number}{total}, input_precision="ieee")')
            total = f", {name}"

    def _load_values(self, context: Expressions) -> None:
        """value [KEYS, Dv]"""
        place = state_place(self.operation.values, self.known)
        name, size = context.argument(place.slot, place.element), self.shape.value_dim
        context.line(f"number = tl.arange(0, {padded(size)})[None, :]")
        context.line(f"line = tl.reshape({self._record(size)}, [{self.shape.keys}, 1])")
        inside = f" & (number < {size})" if padded(size) != size else ""
        context.line(f"there_line = tl.reshape(there, [{self.shape.keys}, 1])")
        context.line(f"value = tl.load({name} + line + number, mask=there_line{inside}, other=0.0)")

    def _weigh(self, context: Expressions, suffix: str, hides: bool) -> None:
        """Scores to weights, in units of the largest so far. `hides`: whether a key may be hidden from a row."""
        scale, softcap, bias = self.operation.scale, self.operation.softcap, self.operation.bias
        context.line(f"score = score * {literal(scale)}")
        if softcap is not None:
            context.line(f"score = tanh(score / {literal(softcap)}) * {literal(softcap)}")
        if hides:
            context.line(f"visible = at <= position{suffix}")
        if self.operation.first is not None:
            context.line(f"visible = visible & (at >= first{suffix})")
        if bias is not None:
            stored = context.stored[bias]
            by_key = self.operation.bias_by == "key"
            head = f"(group * {self.shape.members} + member{suffix})" if stored.dims[0] != 1 else "0"
            at = "at" if by_key else f"(position{suffix} - at)"
            name = context.argument(stored.slot, stored.element)
            place = f"{name} + {head} * {stored.dims[1]} + {at}"
            context.line(f"score = score + tl.load({place}, mask=visible & lane_in{suffix}, other=0.0)")
        if hides:
            context.line('score = tl.where(visible, score, float("-inf"))')
        context.line(f"larger = tl.maximum(largest{suffix}, tl.max(score, axis=1, keep_dims=True))")
        if hides:
            context.line('unit = tl.where(larger == float("-inf"), 0.0, larger)')
        unit = "unit" if hides else "larger"
        context.line(f"weight = tl.exp(score - {unit})")
        context.line(f"shrink = tl.exp(largest{suffix} - {unit})")
        context.line(f"total{suffix} = total{suffix} * shrink + weight")
        context.line(f"sums{suffix} = sums{suffix} * shrink")
        context.line(f"largest{suffix} = larger")

    def _finish(self, context: Expressions, suffix: str) -> None:
        """Write a tile's sums [N, H, splits, Dv] and its largest score and total [N, H, splits, 2]."""
        shape, (sums, totals) = self.shape, self.scratch
        names = [context.argument(each.slot, each.element) for each in (sums, totals)]
        splits, dim = sums.dims[2], sums.dims[3]
        context.line(f"number = tl.arange(0, {padded(shape.value_dim)})[None, :]")
        inside = f" & (number < {dim})" if padded(shape.value_dim) != dim else ""
        query = f"(row{suffix} * {shape.heads} + group * {shape.members} + member{suffix})"
        context.line(f"place = {query} * {splits} + start // {shape.split}")
        context.line(f"tl.store({names[0]} + place * {dim} + number, sums{suffix}, mask=lane_in{suffix}{inside})")
        context.line(f"tl.store({names[1]} + place * 2, largest{suffix}, mask=lane_in{suffix})")
        added = f"row_sum(total{suffix}, {LANES}, {shape.keys}, {shape.keys.bit_length() - 1})"
        context.line(f"tl.store({names[1]} + place * 2 + 1, {added}, mask=lane_in{suffix})")

    def emit_combine(self, context: Expressions, result: Stored) -> None:
        """The splits of one row and head, in order. Grid (rows, heads)."""
        shape, (sums, totals) = self.shape, self.scratch
        context.size("N")
        splits, dim = sums.dims[2], sums.dims[3]
        names = [context.argument(each.slot, each.element) for each in (sums, totals)]
        positions = self._input(context, "positions", 1)
        context.line("row = tl.program_id(0) + tl.full([1, 1], 0, tl.int32)")
        context.line("row_in = row < N")
        context.line("head = tl.program_id(1)")
        context.line(f"number = tl.arange(0, {padded(shape.value_dim)})[None, :]")
        context.line(f"number_in = number < {dim}")
        context.line(f"position = tl.max(tl.load({positions} + row, mask=row_in, other=-1))")
        row = Index.of(Lane("row", None, frozenset({"row_in"})))
        begin = "0"
        if self.operation.first is not None:
            first = context.element(self.operation.first, [row])
            context.line(f"begin = tl.max({first.text}) // {shape.split}")
            begin = "begin"
        context.line('largest = float("-inf")')
        context.line("total = 0.0")
        context.line(f"sums = tl.full([1, {padded(shape.value_dim)}], 0.0, tl.float32)")
        context.line(f"record = (tl.program_id(0) * {shape.heads} + head) * {splits}")
        stop = f"tl.where(position < 0, 0, position // {shape.split} + 1)"
        with context.block(f"for split in range({begin}, {stop}):"):
            context.line(f"height = tl.load({names[1]} + (record + split) * 2)")
            context.line(f"added = tl.load({names[1]} + (record + split) * 2 + 1)")
            context.line(f"part = tl.load({names[0]} + (record + split) * {dim} + number, mask=number_in, other=0.0)")
            context.line("larger = tl.maximum(largest, height)")
            context.line("old = tl.exp(largest - larger)")
            context.line("new = tl.exp(height - larger)")
            context.line("total = total * old + added * new")
            context.line("sums = sums * old + part * new")
            context.line("largest = larger")
        if self.operation.sinks is not None:
            stored = context.stored[self.operation.sinks]
            context.line(f"sink = tl.load({context.argument(stored.slot, stored.element)} + head)")
            context.line("larger = tl.maximum(largest, sink)")
            context.line("total = total * tl.exp(largest - larger) + tl.exp(sink - larger)")
            context.line("sums = sums * tl.exp(largest - larger)")
        at = Index.of(Lane("number", dim if isinstance(dim, int) else None, frozenset({"number_in"}), 0, True))
        value = context.let("sums / total", 0, "attended")
        context.write(result, [row, Index.of(Lane("head", shape.heads)), at], value)
