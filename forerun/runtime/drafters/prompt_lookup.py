"""Prompt lookup: proposes what followed earlier occurrences of the context's last tokens.

After Saxena's prompt lookup decoding (2023), with all recent occurrences of the longest matching suffix in one tree.
"""

import numpy as np

from forerun.runtime.drafters.base import (
    AcceptanceRates,
    Budget,
    Context,
    Drafter,
    Observation,
    Proposal,
    RatedTree,
    RatedTreeBuilder,
)
from forerun.runtime.tree import root_only

LONGEST_COUNTED_MATCH = 12  # longer matches are not better evidence
UNLIKELY = 0.01  # a row less likely than this gets no children
RANKS = 3  # of siblings: the first proposed, the second, any later one
PRIOR_OF_MATCH = (0.23, 0.42, 0.6, 0.7, 0.75, 0.8, 0.8, 0.82, 0.85, 0.9, 0.91, 0.95)  # the first sibling's, by length


class SuffixIndex:
    """The positions where each n-gram of the context ended, latest last. O(1) per token: nothing is rescanned."""

    def __init__(self, longest: int, places: int) -> None:
        self.longest = longest
        self.places = places
        self.indexed = 0  # tokens of the context that are in the index
        self._ends: list[dict[tuple[int, ...], list[int]]] = [{} for _ in range(longest)]

    def extend(self, tokens: list[int]) -> None:
        """Indexes the n-grams that have a successor: those that end before the last token."""
        for end in range(self.indexed, len(tokens) - 1):
            for length in range(1, min(self.longest, end + 1) + 1):
                ends = self._ends[length - 1].setdefault(tuple(tokens[end + 1 - length : end + 1]), [])
                ends.append(end)
                if len(ends) > 2 * self.places:
                    del ends[: self.places]
        self.indexed = max(self.indexed, len(tokens) - 1)

    def matches(self, tokens: list[int]) -> list[int]:
        """Returns the ends of earlier occurrences of the context's suffixes: longest n-grams first, then latest."""
        found: dict[int, None] = {}
        for length in range(min(self.longest, len(tokens) - 1), 0, -1):
            for end in reversed(self._ends[length - 1].get(tuple(tokens[-length:]), [])):
                found.setdefault(end)
                if len(found) == self.places:
                    return list(found)
        return list(found)


class PromptLookup(Drafter):
    """Continues the context as it continued before. Its rates depend on match length and rank among siblings."""

    rests = True

    def __init__(self, longest: int = 4, places: int = 8) -> None:
        """`longest`: the length of the longest indexed n-gram; `places`: the occurrences that one tree merges."""
        self.longest = longest
        self.places = places
        prior = np.array(PRIOR_OF_MATCH)[:, None] * np.array([1.0, 0.4, 0.2])
        self.rates = AcceptanceRates(prior.reshape(-1))
        self._indices: dict[Context, SuffixIndex] = {}
        self._proposed: dict[Context, RatedTree] = {}

    def begin(self, context: Context) -> None:
        self._indices[context] = SuffixIndex(self.longest, self.places)

    def propose(self, context: Context, budget: Budget) -> Proposal:
        tokens = context.tokens
        if budget.depth == 0:
            self._proposed.pop(context, None)
            return Proposal(root_only(tokens[-1]))
        index = self._indices[context]
        index.extend(tokens)
        builder = RatedTreeBuilder(tokens[-1])
        children = [0] * (2 * budget.rows)
        matches = [(_match_length(tokens, end), end) for end in index.matches(tokens)]
        for length, end in sorted(matches, key=lambda match: -match[0]):
            self._add_continuation(builder, children, tokens, end, length, budget.depth)
        self._proposed[context] = proposed = builder.build_rated().likeliest(budget.rows)
        return Proposal(proposed.tree)

    def observe(self, context: Context, observation: Observation) -> None:
        self.rates.learn(self._proposed.pop(context, None), observation.tokens)

    def rewind(self, context: Context, length: int) -> None:
        if self._indices[context].indexed >= length:
            self._indices[context] = SuffixIndex(self.longest, self.places)

    def end(self, context: Context) -> None:
        self._indices.pop(context, None)
        self._proposed.pop(context, None)

    def _add_continuation(
        self, builder: RatedTreeBuilder, children: list[int], tokens: list[int], end: int, match: int, depth: int
    ) -> None:
        """Adds the tokens that followed position `end`, where `match` tokens match, as far as they are likely.

        A continuation that reaches the end of the context continues into itself. `children` counts each row's children.
        """
        row = 0
        drafted: list[int] = []
        for offset in range(1, depth + 1):
            place = end + offset
            token = tokens[place] if place < len(tokens) else drafted[place - len(tokens)]
            drafted.append(token)
            child = builder.find(row, token)
            if child is None:
                if len(builder) == len(children) or builder.probabilities[row] < UNLIKELY:
                    return
                length = min(match + offset - 1, LONGEST_COUNTED_MATCH)  # tokens that match if the path is right so far
                feature = (length - 1) * RANKS + min(children[row], RANKS - 1)
                children[row] += 1
                child = builder.add_rated(row, token, float(self.rates.rate[feature]), feature)
            row = child


def _match_length(tokens: list[int], end: int) -> int:
    """Returns how many tokens up to `end` equal the context's last ones, counted only as far as it matters."""
    length = 1
    while length < LONGEST_COUNTED_MATCH and length <= end and tokens[end - length] == tokens[-1 - length]:
        length += 1
    return length
