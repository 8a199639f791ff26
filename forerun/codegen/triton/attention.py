"""Position-aligned tree attention: online softmax over blocks of absolute positions, in splits at fixed positions.

A tile has 16 lanes: the query heads of one key head, for as many rows as fit. It processes one split in order. If all
its rows have committed a block of one sequence, the block's keys are loaded once for all lanes; otherwise row by row,
each position from wherever it lies, with the same instructions, and a lane keeps its own row's result. A split that
all rows of several tiles have committed is processed by one program for all of them over one load (`together`), again
with the same instructions. So the arithmetic of a (row, position) is the same wherever its key lies. Invisible keys
have weight exactly 0. Sums over keys have one lane per key, and are added as a tree at the split's end; `combine` then
adds the splits in order.
"""

from __future__ import annotations

from forerun.codegen.loops.buffer import Buffer
from forerun.codegen.loops.expr import Expr, Load
from forerun.codegen.loops.expr import number as constant
from forerun.codegen.loops.index import Index, Lane
from forerun.codegen.loops.nest import AttentionNest
from forerun.codegen.triton.attention_shape import LANES, Shape, padded
from forerun.codegen.triton.functions import literal
from forerun.codegen.triton.text import TYPES, Text


class AttentionText:
    """Writes the kernel of a tree attention; `shared` tiles process a committed split over one load."""

    def __init__(self, nest: AttentionNest, shape: Shape) -> None:
        self.nest, self.shape, self.block = nest, shape, nest.history.block
        history = nest.history
        self.inputs = {"positions": history.position, "sequences": history.sequence, "bases": history.base}
        self.scratch = tuple(
            Buffer("scratch", f"{name} of splits", dims, "f32", "f32")
            for name, dims in (
                ("sums", (nest.rows, nest.heads, shape.splits, nest.value_dim)),
                ("totals", (nest.rows, nest.heads, shape.splits, 2)),
            )
        )

    def describe(self) -> str:
        nest, shape = self.nest, self.shape
        return (
            f"tree attention, {nest.heads} heads over {nest.groups} of {nest.key_dim} and {nest.value_dim} in "
            f"{shape.element}, splits of {shape.split} positions"
        )

    def emit(self, text: Text, shared: int) -> None:
        """Writes the kernel. Grid (splits, key heads, shared tiles and then own tiles)."""
        text.sizes.add("N")
        text.line(f"start = tl.program_id(0) * {self.shape.split}")
        text.line("group = tl.program_id(1)")
        if shared == 1:
            text.line("tile = tl.program_id(2)")
            self._one(text)
            return
        text.line(f"count = (tl.num_programs(2) + {shared}) // {shared + 1}")
        text.line("program = tl.program_id(2)")
        with text.block("if program < count:"):
            self._together(text, shared)
        with text.block("else:"):
            text.line("tile = program - count")
            self._committed(text, f"tile // {shared}", shared)
            with text.block("if committed == 0:"):
                self._one(text)

    # --- lanes

    def _lanes(self, text: Text, tile: str, suffix: str) -> None:
        """Names the rows of a tile's lanes, all [16, 1]."""
        shape, depth = self.shape, text.depth
        text.line(f"lane = tl.arange(0, {LANES})[:, None]")
        text.line(f"own_row{suffix} = lane // {shape.together}")
        if shape.head_tiles == 1:
            text.line(f"row{suffix} = ({tile}) * {shape.rows} + own_row{suffix}")
            text.line(f"member{suffix} = lane % {shape.together}")
        else:
            text.line(f"row{suffix} = ({tile}) // {shape.head_tiles} * {shape.rows} + own_row{suffix}")
            text.line(f"member{suffix} = ({tile}) % {shape.head_tiles} * {shape.together} + lane % {shape.together}")
        ragged = f" & (member{suffix} < {shape.members})" if shape.members % shape.together else ""
        text.line(f"lane_in{suffix} = (own_row{suffix} < {shape.rows}) & (row{suffix} < N){ragged}")
        positions = self._input(text, "positions")
        text.line(f"position{suffix} = tl.load({positions} + row{suffix}, mask=lane_in{suffix}, other=-1)")
        mask = f"lane_in{suffix}"
        row = text.bind(Lane(f"row{suffix}"), f"row{suffix}", mask, depth=depth)
        if self.nest.first is not None:
            first = text.render(self._at(self.nest.first, row=row))
            text.line(f"first{suffix} = tl.where(lane_in{suffix}, {first}, 2147483647)")
        head = self._head(text, suffix)
        for number, (start, size) in enumerate(shape.parts):
            name = f"feature_{number}"
            inside = [f"{name}_in[None, :]"] if start + size > self.nest.key_dim else []
            text.line(f"{name} = {start} + tl.arange(0, {size})")
            if inside:
                text.line(f"{name}_in = {name} < {self.nest.key_dim}")
            lane = Lane(f"dim{suffix}_{number}", self.nest.key_dim)
            dim = text.bind(lane, f"{name}[None, :]", *inside, depth=depth, wide=True)
            query = text.render(self._at(self.nest.query, row=row, head=head, dim=dim))
            kept = " & ".join([mask, *inside])
            text.line(f"query{suffix}_{number} = tl.where({kept}, {query}, 0.0).to({TYPES[shape.element]})")
        text.line(f'largest{suffix} = tl.full([{LANES}, 1], float("-inf"), tl.float32)')
        text.line(f"total{suffix} = tl.full([{LANES}, {self.shape.keys}], 0.0, tl.float32)")
        text.line(f"sums{suffix} = tl.full([{LANES}, {padded(self.nest.value_dim)}], 0.0, tl.float32)")

    def _head(self, text: Text, suffix: str) -> Index:
        """Names the heads of a tile's lanes."""
        name = f"(group * {self.shape.members} + member{suffix})"
        lane = Lane(f"head{suffix}", self.nest.heads)
        return text.bind(lane, name, f"lane_in{suffix}", depth=text.depth)

    def _at(self, value: Expr, **places: Index) -> Expr:
        """Returns an expression of the nest at the lanes of a tile."""
        nest = self.nest
        lanes = {nest.history.row: "row", nest.head: "head", nest.dim: "dim", nest.place: "place"}
        return value.substitute(lambda lane: places.get(lanes.get(lane, "")))

    def _input(self, text: Text, name: str) -> str:
        """Returns the pointer to an input of rows."""
        value = self.inputs[name]
        assert isinstance(value, Load)
        return text.argument(value.buffer)

    # --- bodies

    def _together(self, text: Text, shared: int) -> None:
        """Processes a split that all rows of the program's tiles have committed, in one sequence."""
        self._committed(text, "program", shared)
        with text.block("if committed:"):
            suffixes = [f"_{number}" for number in range(shared)]
            for number, suffix in enumerate(suffixes):
                self._lanes(text, f"program * {shared} + {number}", suffix)
            with text.block(f"for begin in range(start, start + {self.shape.split}, {self.shape.keys}):"):
                text.line(f"at = begin + tl.arange(0, {self.shape.keys})[None, :]")
                self._slots(text, "sequence")
                self._load_keys(text)
                # Keys that all rows have committed are visible to all, except for windows.
                hides = self.nest.first is not None or self.nest.bias is not None
                for suffix in suffixes:
                    self._score(text, suffix, "score")
                    self._weigh(text, suffix, hides)
                    text.line(f"weight{suffix} = weight.to({TYPES[self.shape.element]})")
                self._load_values(text)
                for suffix in suffixes:
                    text.line(f'sums{suffix} = tl.dot(weight{suffix}, value, sums{suffix}, input_precision="ieee")')
            for suffix in suffixes:
                self._finish(text, suffix)

    def _one(self, text: Text) -> None:
        """Processes one tile's split."""
        shape = self.shape
        self._lanes(text, "tile", "")
        sequences, bases = self._input(text, "sequences"), self._input(text, "bases")
        text.line(f"base = tl.load({bases} + row, mask=lane_in, other=2147483647)")
        text.line(f"sequence_low = tl.min(tl.load({sequences} + row, mask=lane_in, other=2147483647))")
        text.line(f"sequence_high = tl.max(tl.load({sequences} + row, mask=lane_in, other=-1))")
        text.line("common = tl.where(sequence_low == sequence_high, tl.min(base), 0)")
        text.line(f"stop = tl.minimum(start + {shape.split}, tl.max(position) + 1)")
        begin = "start"
        if self.nest.first is not None:
            text.line(f"begin_at = tl.maximum(start, tl.min(first) // {self.shape.keys} * {self.shape.keys})")
            begin = "begin_at"
        with text.block(f"for begin in range({begin}, stop, {self.shape.keys}):"):
            text.line(f"at = begin + tl.arange(0, {self.shape.keys})[None, :]")
            with text.block(f"if begin + {self.shape.keys} <= common:"):
                self._slots(text, "sequence_low")
                self._load_keys(text)
                self._score(text, "", "score")
            with text.block("else:"):
                text.line(f"score = tl.full([{LANES}, {self.shape.keys}], 0.0, tl.float32)")
                with text.block(f"for one in range({shape.rows}):"):
                    self._row_slots(text)
                    self._load_keys(text)
                    self._score(text, "", "found")
                    text.line("score = tl.where(own_row == one, found, score)")
            self._weigh(text, "", True)
            text.line(f"rounded = weight.to({TYPES[shape.element]})")
            with text.block(f"if begin + {self.shape.keys} <= common:"):
                self._slots(text, "sequence_low")
                self._load_values(text)
                text.line('sums = tl.dot(rounded, value, sums, input_precision="ieee")')
            with text.block("else:"):
                text.line("before = sums")
                with text.block(f"for one in range({shape.rows}):"):
                    self._row_slots(text)
                    self._load_values(text)
                    text.line('added = tl.dot(rounded, value, before, input_precision="ieee")')
                    text.line("sums = tl.where(own_row == one, added, sums)")
        with text.block(f"if {begin} < stop:"):
            self._finish(text, "")

    def _committed(self, text: Text, tile: str, shared: int) -> None:
        """Finds whether the rows of some tiles belong to one sequence and have committed all of the split."""
        shape = self.shape
        groups = shared if shape.head_tiles == 1 else (shared - 1) // shape.head_tiles + 2
        rows = groups * shape.rows
        wide = 1 << (rows - 1).bit_length()
        sequences, bases = self._input(text, "sequences"), self._input(text, "bases")
        text.line(f"many = tl.arange(0, {wide})")
        text.line(f"many_row = ({tile}) * {shared} // {shape.head_tiles} * {shape.rows} + many")
        text.line(f"many_in = (many < {rows}) & (many_row < N)")
        text.line(f"sequence = tl.min(tl.load({sequences} + many_row, mask=many_in, other=2147483647))")
        text.line(f"other = tl.max(tl.load({sequences} + many_row, mask=many_in, other=-1))")
        text.line(f"bound = tl.min(tl.load({bases} + many_row, mask=many_in, other=2147483647))")
        text.line(f"committed = (sequence == other) & (start + {shape.split} <= bound)")

    # --- pieces

    def _slots(self, text: Text, sequence: str) -> None:
        """Finds the slots of positions `at` in the blocks of a sequence."""
        shape, tables = self.shape, text.argument(self.nest.history.tables)
        place = f"{tables} + {sequence} * {shape.tables} + at // {self.block}"
        text.line(f"slot = tl.load({place}) * {self.block} + at % {self.block}")
        text.line("there = at >= 0")

    def _row_slots(self, text: Text) -> None:
        """Finds the slots of positions `at` in the history of row `one`: in blocks below its base, then in its path."""
        shape = self.shape
        names = [self._input(text, each) for each in ("positions", "sequences", "bases")]
        text.line(f"own = tile // {shape.head_tiles} * {shape.rows} + one")
        for variable, name, other in zip(("own_position", "own_sequence", "own_base"), names, (-1, 0, 0), strict=True):
            text.line(f"{variable} = tl.load({name} + own, mask=own < N, other={other})")
        text.line("there = at <= own_position")
        tables, paths = text.argument(self.nest.history.tables), text.argument(self.nest.history.paths)
        text.line(
            f"block = tl.load({tables} + own_sequence * {shape.tables} + at // {self.block}, "
            "mask=there & (at < own_base), other=0)"
        )
        text.line(
            f"slot = tl.load({paths} + own * {shape.path} + at - own_base, mask=there & (at >= own_base), other=0)"
        )
        text.line(f"slot = tl.where(at < own_base, block * {self.block} + at % {self.block}, slot)")

    def _record(self, dim: int) -> str:
        block = f"((slot // {self.block}).to(tl.int64) * {self.nest.groups} + group)"
        return f"({block} * {self.block} + slot % {self.block}) * {dim}"

    def _load_keys(self, text: Text) -> None:
        """Loads key_i [features of the part, keys]."""
        name, size = text.argument(self.nest.keys.buffer), self.nest.key_dim
        text.line(f"record = {self._record(size)}")
        for number, (start, count) in enumerate(self.shape.parts):
            text.line(f"part = {start} + tl.arange(0, {count})[:, None]")
            inside = f" & (part < {size})" if start + count > size else ""
            text.line(f"key_{number} = tl.load({name} + record + part, mask=there{inside}, other=0.0)")

    def _score(self, text: Text, suffix: str, name: str) -> None:
        """Computes q k^T, the parts of the features in one chain."""
        total = ""
        for number in range(len(self.shape.parts)):
            text.line(f'{name} = tl.dot(query{suffix}_{number}, key_{number}{total}, input_precision="ieee")')
            total = f", {name}"

    def _load_values(self, text: Text) -> None:
        """Loads value [KEYS, Dv]."""
        name, size = text.argument(self.nest.values.buffer), self.nest.value_dim
        text.line(f"number = tl.arange(0, {padded(size)})[None, :]")
        text.line(f"line = tl.reshape({self._record(size)}, [{self.shape.keys}, 1])")
        inside = f" & (number < {size})" if padded(size) != size else ""
        text.line(f"there_line = tl.reshape(there, [{self.shape.keys}, 1])")
        text.line(f"value = tl.load({name} + line + number, mask=there_line{inside}, other=0.0)")

    def _weigh(self, text: Text, suffix: str, hides: bool) -> None:
        """Turns scores into weights, relative to the largest so far. `hides`: whether a row may not see a key."""
        nest = self.nest
        text.line(f"score = score * {literal(constant(nest.scale))}")
        if nest.softcap is not None:
            cap = literal(constant(nest.softcap))
            text.line(f"score = tanh(score / {cap}) * {cap}")
        if hides:
            text.line(f"visible = at <= position{suffix}")
        if self.nest.first is not None:
            text.line(f"visible = visible & (at >= first{suffix})")
        if nest.bias is not None:
            at = "at" if nest.bias_by_key else f"(position{suffix} - at)"
            lane = Lane(text.fresh("place"))
            place = text.bind(lane, at, "visible", f"lane_in{suffix}", depth=text.depth, wide=True)
            bias = self._at(nest.bias, head=self._head(text, suffix), place=place)
            text.line(f"score = score + {text.render(bias)}")
        if hides:
            text.line('score = tl.where(visible, score, float("-inf"))')
        text.line(f"larger = tl.maximum(largest{suffix}, tl.max(score, axis=1, keep_dims=True))")
        if hides:
            text.line('unit = tl.where(larger == float("-inf"), 0.0, larger)')
        unit = "unit" if hides else "larger"
        text.line(f"weight = tl.exp(score - {unit})")
        text.line(f"shrink = tl.exp(largest{suffix} - {unit})")
        text.line(f"total{suffix} = total{suffix} * shrink + weight")
        text.line(f"sums{suffix} = sums{suffix} * shrink")
        text.line(f"largest{suffix} = larger")

    def _finish(self, text: Text, suffix: str) -> None:
        """Writes a tile's sums [N, H, splits, Dv] and its largest score and total [N, H, splits, 2]."""
        shape, (sums, totals) = self.shape, self.scratch
        names = [text.argument(each) for each in (sums, totals)]
        splits, dim = sums.dims[2], sums.dims[3]
        text.line(f"number = tl.arange(0, {padded(self.nest.value_dim)})[None, :]")
        inside = f" & (number < {dim})" if padded(self.nest.value_dim) != dim else ""
        query = f"(row{suffix} * {self.nest.heads} + group * {shape.members} + member{suffix})"
        text.line(f"place = {query} * {splits} + start // {shape.split}")
        text.line(f"tl.store({names[0]} + place * {dim} + number, sums{suffix}, mask=lane_in{suffix}{inside})")
        text.line(f"tl.store({names[1]} + place * 2, largest{suffix}, mask=lane_in{suffix})")
        added = f"row_sum(total{suffix}, {LANES}, {shape.keys}, {shape.keys.bit_length() - 1})"
        text.line(f"tl.store({names[1]} + place * 2 + 1, {added}, mask=lane_in{suffix})")

    def emit_combine(self, text: Text) -> None:
        """Adds the splits of one row and head, in order. Grid (rows, heads)."""
        shape, (sums, totals) = self.shape, self.scratch
        text.sizes.add("N")
        splits, dim = sums.dims[2], sums.dims[3]
        names = [text.argument(each) for each in (sums, totals)]
        positions = self._input(text, "positions")
        text.line("row = tl.program_id(0) + tl.full([1, 1], 0, tl.int32)")
        text.line("row_in = row < N")
        text.line("head = tl.program_id(1)")
        text.line(f"number = tl.arange(0, {padded(self.nest.value_dim)})[None, :]")
        text.line(f"numberin = number < {dim}")
        text.line(f"position = tl.max(tl.load({positions} + row, mask=row_in, other=-1))")
        row = text.bind(Lane("row"), "row", "row_in")
        begin = "0"
        if self.nest.first is not None:
            first = text.render(self._at(self.nest.first, row=row))
            text.line(f"begin = tl.max({first}) // {shape.split}")
            begin = "begin"
        text.line('largest = float("-inf")')
        text.line("total = 0.0")
        text.line(f"sums = tl.full([1, {padded(self.nest.value_dim)}], 0.0, tl.float32)")
        text.line(f"record = (tl.program_id(0) * {self.nest.heads} + head) * {splits}")
        stop = f"tl.where(position < 0, 0, position // {shape.split} + 1)"
        with text.block(f"for split in range({begin}, {stop}):"):
            text.line(f"height = tl.load({names[1]} + (record + split) * 2)")
            text.line(f"added = tl.load({names[1]} + (record + split) * 2 + 1)")
            text.line(f"part = tl.load({names[0]} + (record + split) * {dim} + number, mask=numberin, other=0.0)")
            text.line("larger = tl.maximum(largest, height)")
            text.line("old = tl.exp(largest - larger)")
            text.line("new = tl.exp(height - larger)")
            text.line("total = total * old + added * new")
            text.line("sums = sums * old + part * new")
            text.line("largest = larger")
        head = text.bind(Lane("head", self.nest.heads), "head")
        if self.nest.sinks is not None:
            text.line(f"sink = {text.render(self._at(self.nest.sinks, head=head))}")
            text.line("larger = tl.maximum(largest, sink)")
            text.line("total = total * tl.exp(largest - larger) + tl.exp(sink - larger)")
            text.line("sums = sums * tl.exp(largest - larger)")
        at = text.bind(Lane("number", self.nest.value_dim), "number", "numberin", wide=True)
        text.write(self.nest.result, [row, head, at], text.let("sums / total", 0, "attended"))
