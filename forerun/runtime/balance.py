"""Whether something pays that is done in some iterations and left out in others, and when it is tried again."""

import math
from dataclasses import dataclass, field

CLIP = 2.0
"""The most tokens that one iteration counts, gained or lost: neither a burst nor a pause decides for long."""
HOPED = 1.0
"""The gain that is assumed of what has hardly been tried."""
TIE = 0.02
"""A loss of so many tokens a use is none: times are not known better."""
SAVED = 4.0
"""The most tokens that are saved for trials."""
TRIES = 12
"""The most trials that follow each other because they are promising."""


@dataclass
class Balance:
    """The mean gain of recent uses, in tokens against doing without.

    What does not pay rests. It is tried again when the tokens saved for trials, a share of all, allow a loss. A trial
    that promises a gain is followed by the next at once, so that what has become good is soon used again.
    """

    memory: float = 0.9  # the weight of a use's gain one use later
    patience: int = 12  # uses before they are judged
    share: float = 0.01  # of the tokens, saved for trials
    debt: float = math.inf  # the most tokens that must be saved before the next trial
    most: float = CLIP  # the most tokens that one use counts as gained
    _mean: float = field(init=False, default=0.0)
    _uses: int = field(init=False, default=0)
    _saved: float = field(init=False, default=0.0)
    _promising: int = field(init=False, default=0)  # trials in a row that were

    @property
    def pays(self) -> bool:
        """Whether uses have gained lately; what has hardly been tried is assumed to."""
        return self._uses < self.patience or self._mean > -TIE

    @property
    def allows(self) -> bool:
        """Whether the last trial was promising, or tokens are saved for one, which may then cost more than those."""
        return self._saved > 0 or 0 < self._promising < TRIES

    @property
    def gain(self) -> float:
        """The mean gain of recent uses; what has hardly been tried is assumed to gain."""
        return self._mean if self._uses >= self.patience else max(self._mean, HOPED)

    def earn(self) -> None:
        """Called in each iteration."""
        self._saved = min(SAVED, self._saved + self.share)

    def renew(self) -> None:
        """Forgets what uses have gained: there is a reason to expect something else."""
        self._mean, self._uses = 0.0, 0

    def spend(self, tokens: float) -> None:
        """Called with what trials have cost besides."""
        self._saved -= tokens

    def observe(self, gain: float, trial: bool, promising: bool = False) -> None:
        """Called after a use with the tokens that it gained; a trial is a use that was not expected to pay.

        `promising`: whether there is a sign of better to come; a gain is one.
        """
        gain = min(max(gain, -CLIP), self.most)
        self._uses += 1
        self._mean += max(1 - self.memory, 1 / self._uses) * (gain - self._mean)
        self._promising = self._promising + 1 if trial and (promising or gain > 0) else 0
        if trial:
            self._saved = max(-self.debt, min(SAVED, self._saved + gain))
