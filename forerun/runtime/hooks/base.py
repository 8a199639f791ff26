"""The interface of logits hooks, and their states along a session's text.

A hook changes the scores of each next token by the tokens before it. What it knows of them is a state, a value that
never changes: each row of a tree has its own, made from its parent's. So a token depends on the tokens before it, and
never on the rows that were evaluated beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forerun.errors import InvalidOptionError, first_sentence
from forerun.runtime.executable import Float32
from forerun.runtime.tree import Tree


@dataclass(frozen=True)
class Place:
    """Where a token is chosen."""

    position: int  # absolute
    generated: int  # the new tokens before it
    left: int  # how many tokens the text may still have, this one included


class Hook:
    """Changes the scores of the next token; the base class changes nothing.

    A hook serves any number of sessions, and may be called for several rows of one tree. A state is whatever `begin`
    and `advance` return; hooks that need only the number of tokens have None.
    """

    narrows: bool = False
    """Whether `allows` and `forced` say which drafts can be right."""

    def begin(self, prompt: Sequence[int]) -> Any:
        """Returns the state after a prompt."""
        return None

    def advance(self, state: Any, token: int) -> Any:
        """Returns the state after one more token. The given state stays as it is."""
        return state

    def scores(self, state: Any, scores: Float32, place: Place) -> Float32:
        """Returns the scores [V] of the next token; those of excluded tokens are -inf.

        scores  [V] the logits after the hooks before this one, with -inf for NaN. They may be changed in place.
        """
        return scores

    def prepare(self, state: Any, tree: Tree) -> None:
        """Called before the step over a tree from which tokens are chosen; `state` is that of its root."""

    def evaluate(self) -> None:
        """Called before a step, when all of its trees have been prepared: what takes a launch is for all of them.

        The target's step comes after it, because all steps of an executable share buffers.
        """

    def allows(self, state: Any, tokens: Sequence[int]) -> Sequence[bool]:
        """Whether each of some tokens may be next. Tokens that may not are never drafted."""
        return [True] * len(tokens)

    def forced(self, state: Any) -> Sequence[int]:
        """Returns tokens that must follow, one after another; none if it is not known. They are drafted."""
        return ()

    def finishes(self, state: Any) -> bool:
        """Whether the text ends with its last token, of whatever kind that is, because nothing may follow.

        Nobody asks for scores after such a state.
        """
        return False

    def end(self, state: Any) -> None:
        """Called when a session ends, with the state of its last token that was reached."""


class HookStates:
    """The states of a request's hooks along a text: those of its committed tokens, and of the rows of a tree."""

    def __init__(self, hooks: Sequence[Hook], begins: int) -> None:
        """`begins`: the number of tokens of the prompt; those after them are new."""
        self.hooks, self.begins = hooks, begins
        self._length = 0  # tokens that the states know; none before the hooks have begun
        self._states: list[Any] = []
        self._rows: dict[int, list[Any]] = {}  # by row of the tree

    def reach(self, tokens: Sequence[int]) -> None:
        """Goes on to the end of a text, which begins as before."""
        if not self._length:
            prompt = tuple(tokens[: self.begins])
            for hook in self.hooks:  # one after another, so that those that have begun can be ended
                self._states.append(hook.begin(prompt))
            self._length = self.begins
        for token in tokens[self._length :]:
            self._states = self.after(self._states, token)
        self._length = len(tokens)
        for hook, state in zip(self.hooks, self._states, strict=True):
            if hook.finishes(state):
                raise InvalidOptionError(
                    f"{name(hook)} lets nothing follow the first {self._length} tokens: go on from fewer of them"
                )

    def forked(self) -> "HookStates":
        """Returns the same states for another text that goes on from here; `end` is only called for these."""
        forked = HookStates(self.hooks, self.begins)
        forked._states, forked._length = list(self._states), self._length
        return forked

    def after(self, states: Sequence[Any], token: int) -> list[Any]:
        """Returns the states after one more token."""
        return [hook.advance(state, token) for hook, state in zip(self.hooks, states, strict=True)]

    @property
    def states(self) -> list[Any]:
        """The states at the last token reached."""
        return self._states

    def last(self, tokens: Sequence[int]) -> int | None:
        """Returns with how many of the tokens after the last one reached a hook ends the text; None if none does."""
        ending = [number for number, hook in enumerate(self.hooks) if type(hook).finishes is not Hook.finishes]
        hooks, states = [self.hooks[number] for number in ending], [self._states[number] for number in ending]
        for count, token in enumerate(tokens if ending else (), start=1):
            states = [hook.advance(state, token) for hook, state in zip(hooks, states, strict=True)]
            if any(hook.finishes(state) for hook, state in zip(hooks, states, strict=True)):
                return count
        return None

    def enter(self, tree: Tree) -> None:
        """Begins with the rows of a tree whose root is the last token reached."""
        self._rows = {0: self._states}
        for hook, state in zip(self.hooks, self._states, strict=True):
            hook.prepare(state, tree)

    def finish(self, tree: Tree, row: int) -> bool:
        """Whether a hook ends the text with a row of the tree; the row's parent has been asked about before."""
        return any(hook.finishes(state) for hook, state in zip(self.hooks, self._at(tree, row), strict=True))

    def _at(self, tree: Tree, row: int) -> list[Any]:
        if row not in self._rows:
            self._rows[row] = self.after(self._rows[int(tree.parent[row])], int(tree.token[row]))
        return self._rows[row]

    def scores(self, tree: Tree, row: int, logits: Float32, left: int, may_end: bool = False) -> Float32:
        """Returns the scores [V] after a row of the tree; those after its parent come before. `left` is the root's.

        Raises `InvalidOptionError` if no token is left, unless the text `may_end` there.
        """
        depth = int(tree.depth[row])
        place = Place(self._length + depth, self._length + depth - self.begins, left - depth)
        scores = logits.copy()
        for hook, state in zip(self.hooks, self._at(tree, row), strict=True):
            scores = _checked(hook, hook.scores(state, scores, place), len(logits))
        if np.isnan(largest := scores.max()):
            scores = np.where(np.isnan(scores), np.float32(-np.inf), scores)
            largest = scores.max()
        if largest == -np.inf and not may_end:
            raise InvalidOptionError(
                f"no token is left at position {place.position}: all are excluded by {', '.join(map(name, self.hooks))}"
            )
        return scores

    def end(self) -> None:
        """Ends the hooks that have begun; all of them even if one fails."""
        states, self._states, self._rows = self._states, [], {}
        errors: list[Exception] = []
        for hook, state in zip(self.hooks, states, strict=False):
            try:
                hook.end(state)
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]


def name(hook: object) -> str:
    """Returns what a hook is called in messages."""
    return str(getattr(hook, "name", None) or type(hook).__name__)


def _checked(hook: Hook, scores: Any, vocabulary: int) -> Float32:
    """Returns a hook's scores as an array [V] of its own dtype. Raises `InvalidOptionError`."""
    try:
        found: NDArray[Any] = np.asarray(scores)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidOptionError(f"{name(hook)} returned no scores ({first_sentence(error)})") from error
    if found.shape != (vocabulary,) or found.dtype.kind != "f":
        got = type(scores).__name__ if found.dtype.kind not in "biuf" else f"{found.dtype} {list(found.shape)}"
        raise InvalidOptionError(f"{name(hook)} must return scores [{vocabulary}] of floats, not {got}")
    return found.astype(np.float32, copy=False)
