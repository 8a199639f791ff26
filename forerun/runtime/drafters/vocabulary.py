"""A draft model's vocabulary and its target's: the same, two that overlap, or two that share only text.

Timor et al., "Accelerating LLM Inference with Lossless Speculative Decoding Algorithms for Heterogeneous Vocabularies"
(arXiv 2502.05202): token-level intersection proposes the tokens that both vocabularies have; string-level exact match
retokenizes the draft's text for the target. Proposals never change the text, so both may err.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from forerun.errors import InvalidOptionError
from forerun.runtime.executable import Int32
from forerun.runtime.tree import Tree, TreeBuilder

WAYS = ("auto", "same", "intersection", "text")
TAIL = 24
"""How many of the target's last tokens are retokenized: a new token may change the tokenization of those before it."""
SHARED = 0.5
"""At this share of the draft's tokens or above, the intersection is used; below it, text."""


class Follower(Protocol):
    """One context in the draft's tokens, as it grows."""

    def follow(self, tokens: Sequence[int]) -> list[int]:
        """Returns the whole context in the draft's tokens."""
        ...


class Vocabulary(Protocol):
    """How a draft reads the target's tokens, and how the target reads a draft's."""

    def follower(self) -> Follower: ...

    def candidates(self, ids: Int32) -> Int32:
        """Returns the draft's candidates [n, K], with -1 for those that cannot be offered to the target."""
        ...

    def translate(self, tree: Tree, tokens: Sequence[int], own: Sequence[int]) -> Tree:
        """Returns a tree of draft tokens as one of target tokens, under the context `tokens` (`own`: the draft's)."""
        ...


@dataclass(frozen=True)
class SameVocabulary:
    """Both use the same token ids; a model may have room for more ids than are in use."""

    target_size: int
    draft_size: int

    def follower(self) -> Follower:
        return self

    def follow(self, tokens: Sequence[int]) -> list[int]:
        return [token if token < self.draft_size else 0 for token in tokens]

    def candidates(self, ids: Int32) -> Int32:
        return np.where(ids < self.target_size, ids, -1).astype(np.int32)

    def translate(self, tree: Tree, tokens: Sequence[int], own: Sequence[int]) -> Tree:
        if tree.token[0] == tokens[-1]:
            return tree
        return replace(tree, token=np.append(np.int32(tokens[-1]), tree.token[1:]))  # the draft has no such token


class TextFollower:
    """Tokenizes a context's text in the draft's tokens; all but its end is tokenized only once."""

    def __init__(self, target: Any, draft: Any, draft_size: int) -> None:
        self._target, self._draft, self._size = target, draft, draft_size
        self._settled: list[int] = []  # the target's tokens whose translation is final
        self._written: list[int] = []

    def follow(self, tokens: Sequence[int]) -> list[int]:
        if list(tokens[: len(self._settled)]) != self._settled:
            self._settled, self._written = [], []  # cut back to before what was settled
        if len(tokens) - len(self._settled) > 3 * TAIL:
            more = list(tokens[len(self._settled) : len(tokens) - TAIL])
            self._written.extend(self._write(more))
            self._settled.extend(more)
        beginning = [] if self._draft.bos_token_id is None else [self._draft.bos_token_id]
        return [*beginning, *self._written, *self._write(tokens[len(self._settled) :])]

    def _write(self, tokens: Sequence[int]) -> list[int]:
        return [token for token in encode(self._draft, decode(self._target, tokens)) if token < self._size]


class Intersection:
    """Token-level intersection: the draft proposes among the tokens whose strings both vocabularies have."""

    def __init__(self, target: Any, draft: Any, sizes: tuple[int, int]) -> None:
        target_size, draft_size = sizes
        self._follower = target, draft, draft_size
        strings = {text: token for token, text in token_strings(target).items() if token < target_size}
        self.target_of: NDArray[np.int32] = np.full(draft_size, -1, np.int32)  # by the draft's token
        for token, text in token_strings(draft).items():
            if token < draft_size and text in strings:
                self.target_of[token] = strings[text]

    @property
    def share(self) -> float:
        """The share of the draft's tokens that the target has too."""
        return float((self.target_of >= 0).mean())

    def follower(self) -> Follower:
        return TextFollower(*self._follower)

    def candidates(self, ids: Int32) -> Int32:
        return np.where(self.target_of[ids] >= 0, ids, -1).astype(np.int32)

    def translate(self, tree: Tree, tokens: Sequence[int], own: Sequence[int]) -> Tree:
        translated = self.target_of[tree.token]
        translated[0] = tokens[-1]
        return replace(tree, token=translated)


class Text:
    """String-level exact match: the draft's text is cut into the target's tokens, path by path."""

    def __init__(self, target: Any, draft: Any, sizes: tuple[int, int]) -> None:
        self._target, self._draft, self._sizes = target, draft, sizes

    def follower(self) -> Follower:
        return TextFollower(self._target, self._draft, self._sizes[1])

    def candidates(self, ids: Int32) -> Int32:
        return ids

    def translate(self, tree: Tree, tokens: Sequence[int], own: Sequence[int]) -> Tree:
        builder = TreeBuilder(tokens[-1])
        tail, own_tail = list(tokens[-TAIL:]), list(own[-TAIL:])
        before, own_before = decode(self._target, tail), decode(self._draft, own_tail)
        inner = set(tree.parent.tolist())
        for leaf in (row for row in range(1, len(tree)) if row not in inner):
            path = tree.path(leaf)[1:]
            drafted = tree.token[path].tolist()
            texts = [decode(self._draft, own_tail + drafted[:end]) for end in range(1, len(path) + 1)]
            if not texts[-1].startswith(own_before):
                continue
            ends = [len(text) - len(own_before) for text in texts]  # of the draft's rows, in characters drafted
            ids = encode(self._target, before + texts[-1][len(own_before) :])
            if ids[: len(tail)] != tail or max(ids) >= self._sizes[0]:
                continue  # the draft's text changes the context's tokenization, or no token expresses it
            row = 0
            for count in range(len(tail) + 1, len(ids) + 1):
                written = len(decode(self._target, ids[:count])) - len(before)
                reached = next((index for index, end in enumerate(ends) if end >= written), len(ends) - 1)
                likely = float(tree.probability[path[reached]])
                edge = min(1.0, likely / max(builder.probabilities[row], 1e-30))
                row = builder.add(row, ids[count - 1], edge)
        return builder.build()


def require_way(name: str, way: object) -> str:
    """Returns the name of a way; raises `InvalidOptionError` if there is none of that name."""
    if not isinstance(way, str) or way not in WAYS:
        ways = ", ".join(WAYS)
        raise InvalidOptionError(f"{name} does not know the way {way!r} to match vocabularies: use one of {ways}")
    return way


def vocabulary(way: str, target: Any, draft: Any, sizes: tuple[int, int]) -> Vocabulary:
    """Returns how two vocabularies meet; `sizes` are the target's and the draft's. "auto" takes the closest way.

    Raises `InvalidOptionError` if tokenizers are needed but not known, or if the sizes do not fit the way.
    """
    require_way("vocabulary", way)
    known = all(each is not None for each in (target, draft))
    equal = agree(target, draft) if known else sizes[0] == sizes[1]
    if way == "same" or (way == "auto" and equal):
        if sizes[0] != sizes[1] and not equal:
            raise InvalidOptionError(
                f"the draft model has {sizes[1]} tokens and the target {sizes[0]}: they are not the same vocabulary, "
                "use 'intersection' or 'text'"
            )
        return SameVocabulary(*sizes)
    if not known:
        raise InvalidOptionError(
            f"the draft model ({sizes[1]} tokens) and the target ({sizes[0]}) have different vocabularies, matched "
            "by text: give both with their tokenizers"
        )
    intersection = Intersection(target, draft, sizes)
    if way == "intersection" or (way == "auto" and intersection.share >= SHARED):
        return intersection
    return Text(target, draft, sizes)


def agree(left: Any, right: Any) -> bool:
    """Whether two tokenizers are one: the vocabularies differ at most in padding, ids that no text is cut into."""
    small, large = left.get_vocab(), right.get_vocab()
    if len(small) > len(large):
        return agree(right, left)
    if not small.items() <= large.items():
        return False
    more = (large[text] for text in large.keys() - small.keys())
    return not any(encode(right, decode(right, [token])) == [token] for token in more)


def decode(tokenizer: Any, tokens: Sequence[int]) -> str:
    return tokenizer.decode(list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False)


def encode(tokenizer: Any, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def token_strings(tokenizer: Any) -> dict[int, str]:
    """Returns each token as its vocabulary writes it; a leading space is one character, whatever sign stands for it."""
    return {token: text.replace("▁", " ").replace("Ġ", " ") for text, token in tokenizer.get_vocab().items()}
