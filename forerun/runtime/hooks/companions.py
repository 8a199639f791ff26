"""Companions: evaluations beside the target's, of another prompt, by another model, or up to an inner exit.

A companion has a cache of its own and follows the target's path there. The rows of a verified tree are evaluated in one
launch before the target's step, for all sessions of the step together, and the accepted ones stay in the cache; so a
companion costs a launch an iteration, not one a token. By row determinism its logits do not depend on the tree.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import numpy as np

from forerun.errors import InvalidOptionError, TooLongError
from forerun.forking import Turn
from forerun.runtime.cache import CachedSequence
from forerun.runtime.engine import Engine
from forerun.runtime.executable import WHOLE, Executable, Float32, Int32, Part, Rows
from forerun.runtime.rows import join, prompt_rows
from forerun.runtime.tree import Tree, root_only


class Model(Protocol):
    """What a companion needs of a compiled model."""

    @property
    def engine(self) -> Engine: ...

    @property
    def tokenizer(self) -> Any: ...


@dataclass(eq=False)
class Companion:
    """Evaluates texts with an executable, or with its first branches, for any number of sessions.

    serving     the turn of the executable's other users, as all of its steps share buffers
    exits       the numbers of branches after which logits are computed, ascending; none for the whole step

    Of texts that do not fit into the cache together, the least recently used are read again when they are needed.
    """

    executable: Executable
    serving: Turn
    exits: tuple[int, ...] = ()
    _texts: dict["Text", None] = field(default_factory=dict["Text", None])  # the least recently used first
    _prepared: dict["Text", Tree] = field(default_factory=dict["Text", Tree])  # to be evaluated
    _checked: bool = False

    @cached_property
    def engine(self) -> Engine:
        """The companion's cache. It is made when the first session begins, and takes as much memory as a model's."""
        engine = Engine(self.executable)
        engine.serving = self.serving
        return engine

    def begin(self, prompt: Sequence[int], named: str) -> "Reached":
        """Returns the end of a companion's own prompt. `named`: who begins it, for errors.

        Raises `InvalidOptionError`.
        """
        if not len(prompt):
            raise InvalidOptionError(f"{named} has nothing to evaluate: give it a prompt of at least one token")
        self._check(max(prompt))
        with self.serving:
            text = Text(list(prompt), CachedSequence.empty(self.engine.cache.block))
            self._texts[text] = None
        return Reached(text, prompt[-1], len(prompt))

    def end(self, reached: "Reached") -> None:
        """Frees what a text has in the cache."""
        with self.serving:
            self._prepared.pop(reached.text, None)
            self._texts.pop(reached.text, None)
            self._forget(reached.text)

    def prepare(self, reached: "Reached", tree: Tree) -> None:
        """Notes a tree under the end of a text, of whose last tree it keeps the path that led there.

        Raises `InvalidOptionError` and `TooLongError`.
        """
        self._check(int(tree.token.max()))
        with self.serving:
            text = reached.text
            self._follow(text, reached)
            if (length := len(text.tokens)) > self.executable.max_length:
                raise TooLongError(
                    f"a companion's text of {length} tokens exceeds its max_length {self.executable.max_length}: "
                    "shorten its prompt or max_new_tokens, or compile it with a larger max_length"
                )
            token = tree.token.copy()
            token[0] = text.tokens[-1]  # the target's prompt may end with another one
            deepest = min(self.executable.max_path, self.executable.max_length - length)
            tree = replace(tree, token=token)
            text.tree, text.logits = tree.select(np.flatnonzero(tree.depth <= deepest)), None
            self._prepared[text] = text.tree

    def evaluate(self) -> None:
        """Evaluates all trees that have been prepared, in as few launches as there is room for."""
        with self.serving:
            waiting, self._prepared = list(self._prepared), {}
            if waiting:  # not if another hook of the same sessions has had them evaluated
                self._lose_trees()
            spare = self.engine.cache.spare
            while waiting:
                group = self._admitted(waiting)
                waiting = waiting[len(group) :]
                away = sum(len(text.tree) - text.tree.height - 1 for text in group)
                if away > len(spare):
                    self._lose_trees()
                    spare = self.engine.cache.spare
                self._evaluate(group, spare)
                spare = spare[away:]

    def logits(self, reached: "Reached") -> Float32:
        """Returns the logits [exits, V] after a row of a tree that was prepared, or after any other end of a text.

        The latter costs a launch of its own.
        """
        with self.serving:
            text = reached.text
            if text in self._prepared:
                self.evaluate()
            row = text.row(reached)
            if row is None or text.logits is None:
                self.prepare(reached, root_only(reached.token))
                self.evaluate()
                row = 0
            assert text.logits is not None
            return text.logits[:, row]

    def check(self) -> None:
        """Evaluates one row the first time. Raises `InvalidOptionError` if the executable has no such part."""
        with self.serving:
            if self._checked:  # later there may be no room for a row
                return
            with self.engine.sequence(1) as sequence:
                self._launch(prompt_rows(sequence, np.zeros(1, np.int32), np.zeros(1, np.int32)))
            self._checked = True

    def _check(self, token: int) -> None:
        if token >= self.executable.vocabulary:
            raise InvalidOptionError(
                f"token id {token} is outside the companion's vocabulary of {self.executable.vocabulary}: give a model "
                "with the target's vocabulary"
            )

    # --- the cache

    def _follow(self, text: "Text", reached: "Reached") -> None:
        """Lets a text end where it has been reached, and keeps the evaluated rows that led there."""
        new: list[int] = []
        at: Reached | None = reached
        while at is not None and at is not text.root:
            new.append(at.token)
            at = at.above
        new.reverse()
        if at is None:  # it began anew, or went another way
            text.tokens = [*text.prompt[:-1], *new]
        else:
            if text.slots is not None and new:
                rows = text.rows(new[:-1])
                self.engine.keep([text.sequence], [text.slots[rows]])
                text.cached += [int(text.tree.token[row]) for row in rows]
            text.tokens += new
        text.root, text.slots = reached, None

    def _lose_trees(self) -> None:
        """Gives the spare slots to other trees; what was evaluated there is read again if it is needed."""
        for text in self._texts:
            text.slots = None

    def _admitted(self, waiting: Sequence["Text"]) -> list["Text"]:
        """Returns the first of some texts, as many as fit one launch, with room and with all but their ends read.

        The target's own executable has evaluated no larger trees; of another one, a tree may have fewer rows.
        """
        left, group = min(self.executable.max_rows, self.executable.max_outputs), list["Text"]()
        for text in waiting:
            if not group:
                text.tree = text.tree.likeliest(left)
            if len(text.tree) > left:
                break
            self._texts[text] = self._texts.pop(text, None)  # it was used last
            try:
                self._read(text, group)
            except TooLongError:
                if not group:
                    raise
                break
            group.append(text)
            left -= len(text.tree)
        return group

    def _read(self, text: "Text", kept: Sequence["Text"]) -> None:
        """Brings all tokens but the last into the cache; texts that are not to be kept make room."""
        engine, sequence, wanted = self.engine, text.sequence, text.tokens[:-1]
        if text.cached != wanted[: len(text.cached)]:
            same = (mine == other for mine, other in zip(text.cached, wanted, strict=False))
            sequence.cut(next((at for at, equal in enumerate(same) if not equal), min(len(text.cached), len(wanted))))
        if not sequence.length and engine.shares_prefixes:
            self._forget(text)
            engine.cache.adopt(sequence, wanted)
            text.cached = wanted[: sequence.length]
        engine.restore(sequence)
        del text.cached[sequence.length :]
        self._make_room(text, len(wanted) + text.tree.height + 1, kept)
        engine.begin(sequence, {})
        while pending := wanted[len(text.cached) :][: self.executable.max_rows]:
            last = np.array([len(pending) - 1], np.int32)
            part = Part(leave=self.exits[-1]) if self.exits else WHOLE
            engine.run(prompt_rows(sequence, np.array(pending, np.int32), last), part)
            sequence.length += len(pending)
            text.cached += pending
        if engine.shares_prefixes:
            engine.cache.publish(sequence, text.cached)

    def _make_room(self, text: "Text", positions: int, kept: Sequence["Text"]) -> None:
        others = [each for each in self._texts if each is not text and each not in kept and len(each.sequence.blocks)]
        while True:
            try:
                return self.engine.make_room(text.sequence, positions)
            except TooLongError:
                if not others:
                    raise
                self._forget(others.pop(0))

    def _forget(self, text: "Text") -> None:
        self.engine.cache.release(text.sequence)
        text.cached, text.slots = [], None

    # --- launches

    def _evaluate(self, group: Sequence["Text"], spare: Int32) -> None:
        """Evaluates the trees of texts that have been read."""
        trees = [text.tree for text in group]
        parts, slots = self.engine.tree_parts([text.sequence for text in group], trees, spare)
        logits = self._launch(join(parts))
        ends = np.cumsum([len(tree) for tree in trees])
        for text, own, end in zip(group, slots, ends.tolist(), strict=True):
            text.slots, text.logits = own, logits[:, end - len(text.tree) : end]

    def _launch(self, rows: Rows) -> Float32:
        """Returns a copy of the logits [exits, M, V] of rows; the next step of the executable overwrites its own."""
        if not self.exits:
            return self.engine.run(rows).logits[None].copy()
        found: list[Float32] = []
        entered, hidden = 0, None
        for leave in self.exits:
            result = self.engine.run(rows, Part(entered, leave), hidden)
            if self.executable.enters and leave:
                entered, hidden = leave, result.hidden.copy()  # before the logits, which a device computes on demand
            found.append(result.logits.copy())
        return np.stack(found)


@dataclass(eq=False)
class Text:
    """A session's text as its companion reads it, and the last tree under its end."""

    prompt: list[int]
    sequence: CachedSequence
    tokens: list[int] = field(default_factory=list[int])  # up to the root
    cached: list[int] = field(default_factory=list[int])  # the tokens in the cache
    root: "Reached | None" = None
    tree: Tree = field(default_factory=lambda: root_only(0))
    logits: Float32 | None = None  # [exits, n, V] of the tree's rows
    slots: Int32 | None = None  # [n] where the tree's rows lie, until other rows take the place

    def rows(self, tokens: Sequence[int]) -> list[int]:
        """Returns the root and the rows below it that hold these tokens, as far as there are any."""
        rows = [0]
        for token in tokens:
            row = self.tree.child(rows[-1], token)
            if row is None:
                break
            rows.append(row)
        return rows

    def row(self, reached: "Reached") -> int | None:
        """Returns the row of the tree at which a text has been reached."""
        tokens: list[int] = []
        at: Reached | None = reached
        while at is not None and at is not self.root and len(tokens) <= self.tree.height:
            tokens.append(at.token)
            at = at.above
        if at is None or at is not self.root:
            return None
        rows = self.rows(tokens[::-1])
        return rows[-1] if len(rows) == len(tokens) + 1 else None


@dataclass(frozen=True, eq=False)
class Reached:
    """How far a text has been reached: the state of a hook with a companion."""

    text: Text
    token: int  # the last one
    length: int  # tokens of the companion's text
    above: "Reached | None" = None  # None at the end of the prompt

    def after(self, token: int) -> "Reached":
        return Reached(self.text, token, self.length + 1, self)


_companions: WeakKeyDictionary[Engine, dict[tuple[int, ...], Companion]] = WeakKeyDictionary()


def companion_of(model: Model, exits: tuple[int, ...] = ()) -> Companion:
    """Returns the companion that all hooks of a model share: their sessions share its launches and its cache."""
    engine = model.engine
    of_model = _companions.setdefault(engine, {})
    return of_model.setdefault(exits, Companion(engine.executable, engine.serving, exits))
