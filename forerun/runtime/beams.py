"""What a beam search is: its settings, from its fields or from the keywords of `generate`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from forerun.errors import InvalidOptionError
from forerun.runtime.fields import Checked, checked, integer, number
from forerun.runtime.options import require_integer, unwrapped


def _early_stopping(name: str, value: Any) -> bool | str:
    value = unwrapped(value)
    if not isinstance(value, bool) and value != "never":
        raise InvalidOptionError(f'{name} must be True, False or "never", not {value!r}')
    return value


@dataclass(frozen=True)
class BeamSearch(Checked):
    """The likeliest texts, by transformers' settings with their meanings.

    num_beams           the texts that are followed at the same time
    length_penalty      a text's score is its log-probability over its length to this power
    early_stopping      when to end: True, once there are num_beams texts; False, once no better one is likely;
                        "never", once none is possible for a positive length_penalty
    num_beam_groups     the groups of equal size that the beams form (Diverse Beam Search, arXiv 1610.02424)
    diversity_penalty   subtracted from the score of a token for each beam of an earlier group that has chosen it at the
                        same position
    """

    num_beams: int = integer(4, least=1)
    length_penalty: float = number(1.0, least=-10, most=10)
    early_stopping: bool | str = checked(_early_stopping, False)
    num_beam_groups: int = integer(1, least=1)
    diversity_penalty: float = number(0.0, least=0.0, below=float("inf"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_beams % self.num_beam_groups:
            raise InvalidOptionError(
                f"num_beam_groups={self.num_beam_groups} must divide num_beams={self.num_beams}: give a multiple of it"
            )
        if self.diversity_penalty and self.num_beam_groups == 1:
            raise InvalidOptionError("diversity_penalty needs num_beam_groups of 2 or more: add it, or leave both out")


SETTINGS = ("length_penalty", "early_stopping", "num_beam_groups", "diversity_penalty")
"""The keywords that only a beam search has."""
APART = ("streamer", "stopping_criteria", "stop_strings", "stop")
"""The keywords that do not combine with beams."""


def beams_of(keywords: Mapping[str, Any], do_sample: bool) -> BeamSearch | None:
    """Returns the beam search that keywords of `generate` describe; None if they describe none.

    Raises `InvalidOptionError`, also for keywords that do not combine with a beam search.
    """
    given = {name: keywords[name] for name in SETTINGS if name in keywords}
    count = require_integer("num_beams", keywords.get("num_beams", 1), least=1)
    if count == 1:
        groups = require_integer("num_beam_groups", given.get("num_beam_groups", 1), least=1)
        BeamSearch(groups, **given)  # has to be right, but has no effect
        if groups > 1:
            raise InvalidOptionError(f"num_beam_groups={groups} needs num_beams: give a multiple of it")
        return None
    found = BeamSearch(count, **given)
    require_alone(do_sample, keywords, f"num_beams={count}")
    returned = require_integer("num_return_sequences", keywords.get("num_return_sequences", 1), least=1)
    if returned > count:
        raise InvalidOptionError(
            f"num_return_sequences={returned} exceeds num_beams={count}: a search has as many texts as beams"
        )
    return found


def require_alone(do_sample: bool, keywords: Mapping[str, Any], search: str) -> None:
    """Raises `InvalidOptionError` for keywords that do not combine with a beam search, named as it was requested."""
    if do_sample:
        raise InvalidOptionError(f"{search} does not combine with do_sample=True: add do_sample=False")
    for name in APART:
        if keywords.get(name) is not None and keywords[name] not in ([], ()):
            hint = ", or give stop_strings=[] if the model has them by default" if name == "stop_strings" else ""
            raise InvalidOptionError(f"{name} does not combine with {search}: leave one of them out{hint}")
