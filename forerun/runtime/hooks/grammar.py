"""Constrained decoding: a hook that lets through only what a JSON schema, a regular expression or a grammar allows.

llguidance follows the text. Its matcher changes as it moves, and a copy of one takes time and memory by the text's
length; so a session has one, which goes back and forth between rows of a tree, about a microsecond a token.
"""

import re
from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from forerun.errors import InvalidOptionError, first_sentence
from forerun.runtime.executable import Float32
from forerun.runtime.hooks.base import Hook, Place
from forerun.runtime.tree import Tree

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

Allowed = NDArray[np.bool_]
MOST_GUESSED = 64
"""The most certain tokens after which further ones are guessed: more than trees are deep."""
MOST_BYTES = 16
"""The most bytes that a token has on average in a text that is certain."""


class State:
    """The new tokens of a text, as a node below the state before the last of them.

    It never changes; what has been found out about it is kept as long as the tree that it is part of.
    """

    __slots__ = ("allowed", "certain", "children", "closed", "depth", "parent", "text", "token")

    def __init__(self, text: "_Text", parent: "State | None", token: int, closed: bool) -> None:
        self.text, self.parent, self.token = text, parent, token
        self.depth: int = 0 if parent is None else parent.depth + 1  # the number of new tokens
        self.closed = closed  # whether a token that ends texts is among them
        self.children: dict[int, State] = {}
        self.allowed: Allowed | None = None  # [V] by `GrammarHook.mask`
        self.certain: list[int] | None = None  # by `GrammarHook.forced`


class GrammarHook(Hook):
    """Lets through what a grammar allows. Tokens that end texts are allowed exactly where the grammar may end.

    Masks are computed for the rows of the accepted path, when it is followed: those of all rows take longer, and on two
    threads (llguidance's `fill_next_token_bitmask_par`) longer still (docs/grammar.md).
    """

    narrows = True
    name = "grammar"

    def __init__(
        self,
        matcher: "LLMatcher",
        make: "Callable[[], LLMatcher]",
        tokenizer: "LLTokenizer",
        vocabulary: int,
        stop: frozenset[int],
        least: int,
    ) -> None:
        """`matcher`: at the beginning, as a new one that `make` returns. Copies of one share what limits them.

        `vocabulary`: the model's, which may be larger than the tokenizer's.

        `stop`: the tokens that end a text after at least `least` new ones.
        """
        self._matcher, self._make, self._tokenizer, self._vocabulary = matcher, make, tokenizer, vocabulary
        self._tokens = min(tokenizer.vocab_size, vocabulary)
        self._stop, self._least = stop, least
        self._ends = stop | {token for token in tokenizer.eos_tokens if token < vocabulary}

    def begin(self, prompt: Sequence[int]) -> State:
        return _Text(self._matcher.deep_copy()).beginning

    def advance(self, state: State, token: int) -> State:
        found = state.children.get(token)
        if found is None:
            found = State(state.text, state, token, closed=state.closed or token in self._stop)
            if state.certain and token == state.certain[0]:  # what is left is as certain, and found again takes long
                found.certain = state.certain[1:] or None
            state.children[token] = found
        return found

    def scores(self, state: State, scores: Float32, place: Place) -> Float32:
        np.copyto(scores, -np.inf, where=~self.mask(state))
        return scores

    def prepare(self, state: State, tree: Tree) -> None:
        _forget(state)

    def allows(self, state: State, tokens: Sequence[int]) -> list[bool]:
        if state.closed or state.text.exhausted:
            return [not state.closed] * len(tokens)
        try:
            return self._allows(state, tokens)
        except InvalidOptionError:  # of a draft, which says nothing of the text
            return [False] * len(tokens)

    def _allows(self, state: State, tokens: Sequence[int]) -> list[bool]:
        if state.allowed is not None:
            return state.allowed[list(tokens)].tolist()
        certain = self._certain(state)
        matcher = state.text.at(state)
        return [
            self._may_stop(state, token) and matcher.is_accepting()
            if token in self._ends
            else token == certain[0]
            if certain
            else token < self._tokens and matcher.validate_tokens([token]) == 1
            for token in tokens
        ]

    def forced(self, state: State) -> list[int]:
        """Returns the tokens of the bytes that must follow.

        Where the tokenizer would cut the bytes in one way only, masks allow no other, and these tokens are certain. The
        last ones may turn out longer: they are a guess, which a draft may be.
        """
        if state.closed or state.text.exhausted:
            return []
        try:
            return self._forced(state)
        except InvalidOptionError:  # of a draft
            return []

    def _forced(self, state: State) -> list[int]:
        tokens = self._certain(state)
        if len(tokens) > MOST_GUESSED:
            return tokens
        matcher = state.text.at(state)
        if rest := matcher.compute_ff_bytes()[len(self._tokenizer.decode_bytes(tokens)) :]:
            tokens = [*tokens, *self._tokenizer.tokenize_bytes(rest)]
        return list(takewhile(lambda token: token < self._tokens and token not in self._ends, tokens))

    def _certain(self, state: State) -> list[int]:
        """Returns the only tokens that masks allow, one after another."""
        if state.certain is None:
            state.certain = state.text.at(state).compute_ff_tokens()
        return state.certain

    def finishes(self, state: State) -> bool:
        """Whether no token may follow, not even one that ends texts."""
        if state.closed:
            return True
        return not any(self._may_stop(state, token) for token in self._stop) and self._is_complete(state)

    def end(self, state: State) -> None:
        state.children.clear()
        _forget(state)

    def mask(self, state: State) -> Allowed:
        """Returns which tokens [V] may be next. Raises `InvalidOptionError` if the grammar cannot be followed here."""
        if state.allowed is None:
            try:
                state.allowed = self._mask(state)
            except InvalidOptionError:  # drafts and other texts may have used up what a matcher may take
                state.text.renew(self._make(), state)
                state.allowed = self._mask(state)
        return state.allowed

    def _mask(self, state: State) -> Allowed:
        matcher = state.text.at(state)
        bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        state.text.check()
        allowed = np.unpackbits(bits, count=self._tokens, bitorder="little").view(np.bool_)
        if self._tokens < self._vocabulary:
            allowed = np.concatenate([allowed, np.zeros(self._vocabulary - self._tokens, np.bool_)])
        may_end = matcher.is_accepting()
        for token in self._ends:
            allowed[token] = may_end and self._may_stop(state, token)
        return allowed

    def try_out(self, room: int) -> None:
        """Follows what each text begins with, of at most `room` tokens.

        Raises `InvalidOptionError` if that is too complex, as a step would, or too long.
        """
        state = self.begin(())
        self.mask(state)  # first, because llguidance lets other threads run meanwhile
        certain = len(state.text.at(state).compute_ff_bytes())
        if certain > room * MOST_BYTES:
            raise InvalidOptionError(
                f"the grammar begins with {certain} bytes that are certain, and there is room for {room} tokens: give "
                "one with shorter texts"
            )
        for token in self._certain(state)[:1]:
            state = self.advance(state, token)
        self.mask(state)

    def _is_complete(self, state: State) -> bool:
        return not self.mask(state).any() and state.text.at(state).is_accepting()

    def _may_stop(self, state: State, token: int) -> bool:
        return token in self._stop and state.depth >= self._least


class _Text:
    """The matcher of one session, and which state it is at."""

    def __init__(self, matcher: "LLMatcher") -> None:
        self.matcher = matcher
        self.beginning = self._at = State(self, None, -1, closed=False)
        self.exhausted = False  # whether it is better not to be asked about drafts

    def renew(self, matcher: "LLMatcher", state: State) -> None:
        """Goes to a state with a new matcher as plain decoding does, whose masks are small steps from one another.

        Raises `InvalidOptionError` if that is too much for a matcher, too.
        """
        path: list[State] = []
        while state.parent is not None:
            state = state.parent
            path.append(state)
        self.matcher, self._at, self.exhausted = matcher, self.beginning, True
        for each in reversed(path):
            self.at(each).compute_bitmask()
            self.check()

    def at(self, state: State) -> "LLMatcher":
        """Returns the matcher at a state: it goes back to what both have in common, then on.

        Raises `InvalidOptionError` if the grammar does not allow the tokens.
        """
        here, there, on = self._at, state, list[State]()
        while here is not there:
            if there.depth >= here.depth:
                on.append(there)
                there = _parent(there)
            else:
                here = _parent(here)
        if back := self._at.depth - here.depth:
            self.matcher.rollback(back)
            self.check()
        self._at = here
        for each in reversed(on):
            if not self.matcher.try_consume_tokens([each.token]):
                self.check()
                raise InvalidOptionError(
                    f"the grammar does not allow the new token {each.depth}, {each.token}: go on from fewer tokens"
                )
            self._at = each
        return self.matcher

    def check(self) -> None:
        """Raises `InvalidOptionError` if the matcher has given up, such as for lack of room."""
        if self.matcher.is_error():
            raise InvalidOptionError(
                f"the grammar is too complex to be followed here ({reason(self.matcher.get_error())}): simplify it"
            )


def _parent(state: State) -> State:
    assert state.parent is not None
    return state.parent


def _forget(state: State) -> None:
    """Drops what was found out about the states before one, and those of rows beside it."""
    while state.parent is not None and state.parent.children:
        state = state.parent
        state.children.clear()
        state.allowed = None


def reason(message: str) -> str:
    """Returns what llguidance says is wrong, in a few words."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    if named := next((line for line in lines if line.startswith("error: ")), None):
        return named.removeprefix("error: ")
    placed = re.match(r"(?:at )?(\d+)\((\d+)\): (.*)", lines[0])
    return first_sentence(ValueError(placed[3] + f" at line {placed[1]}, column {placed[2]}" if placed else lines[0]))
