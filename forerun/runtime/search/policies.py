"""How a search goes about it: its policies besides `runtime.beams.BeamSearch`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from forerun.errors import InvalidOptionError
from forerun.runtime.beams import SETTINGS, BeamSearch, require_alone
from forerun.runtime.fields import Checked, checked, described, has, integer
from forerun.runtime.options import require_integer

Scorer = Callable[[list[int], list[int], str | None], float]
"""(prompt_ids, token_ids of the text so far, its text or None without a tokenizer) -> how good it is."""


@dataclass(frozen=True)
class BestOf(Checked):
    """n sampled texts, those with the largest mean log-probability of a token first.

    The log-probabilities are the model's own: before hooks, temperature, top_k and top_p. Text i is the one that
    `generate` samples with the identifier i, as with num_return_sequences=n.
    """

    n: int = integer(least=1)


def _ends(name: str, value: Any) -> tuple[int | str, ...]:
    several = value if isinstance(value, tuple | list | frozenset | set) else (value,)
    for each in cast("Sequence[Any]", several):
        if isinstance(each, str) and not each:
            raise InvalidOptionError(f"{name} cannot be empty texts: give at least one character of each")
        if not isinstance(each, str):
            require_integer(name, each, least=0)
    return tuple(cast("Sequence[Any]", several))


@dataclass(frozen=True)
class Scored(Checked):
    """Texts that grow by segments, of which a scorer chooses those that go on.

    At each border the scorer, such as a process reward model, ranks all candidates; the best `keep` go on with as many
    new candidates in all. A text that has ended competes as it is. Candidate c of the search, counted over all
    segments, is sampled with the identifier c.

    scorer      (prompt_ids, token_ids, text) -> a number, the larger the better
    ends        what ends a segment: token ids, or texts such as "\\n\\n", after the token that completes one
    segment     the most tokens of a segment
    candidates  the texts that grow at the same time, a multiple of `keep`
    keep        the texts that go on, and that are returned

    Close to best-first search with process rewards as in Reward-Guided Speculative Decoding (arXiv 2501.19324), but
    speculation stays exact here: it changes no candidate.
    """

    scorer: Scorer = checked(
        has("a function (prompt_ids, token_ids, text) -> number", "__call__", 3),
    )
    ends: tuple[int | str, ...] = checked(_ends, ())
    segment: int = integer(64, least=1)
    candidates: int = integer(4, least=1)
    keep: int = integer(1, least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.candidates % self.keep:
            raise InvalidOptionError(
                f"keep={self.keep} must divide candidates={self.candidates}, which its texts share: give a multiple"
            )


SearchPolicy = BeamSearch | BestOf | Scored
OF_POLICY = ("num_beams", *SETTINGS, "num_return_sequences")
"""The keywords of `generate` that a policy replaces."""


def keywords_of(policy: object, keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keywords of a search, with what its policy implies. Raises `InvalidOptionError`."""
    if not isinstance(policy, SearchPolicy):
        raise InvalidOptionError(
            f"policy must be a BeamSearch, BestOf or Scored of forerun.search, not {described(policy)}"
        )
    for name in OF_POLICY:
        if keywords.get(name) is not None:
            raise InvalidOptionError(f"search does not take {name}: its policy, {type(policy).__name__}, says it")
    do_sample = keywords.get("do_sample")
    if isinstance(policy, BeamSearch):
        require_alone(bool(do_sample), keywords, "BeamSearch")
        return {**keywords, "do_sample": False}
    if do_sample is not None and not do_sample:
        raise InvalidOptionError(
            f"{type(policy).__name__} does not combine with do_sample=False, which gives one text: leave it out"
        )
    return {**keywords, "do_sample": True}
