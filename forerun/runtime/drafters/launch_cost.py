"""What drafting costs: the price of a launch, and time saved for searches."""

from dataclasses import dataclass, field

from forerun.runtime.calibration import CostModel

READ = 8
"""Rows that are read at once at least."""
SAVED = 4
"""The most time that an allowance holds, in steps."""


@dataclass
class LaunchCost:
    """The seconds of a draft's launch: its share of a step of as many rows, plus a recently measured overhead.

    All seconds are the calibration's: if the machine is slower now, steps and launches are slower alike.

    `calibrated` is t(n) of the whole step, of which a part of the target reads a share, or that of another model's
    step. Without it launches cost nothing, for policies that ignore time.
    """

    calibrated: CostModel | None
    memory: float = 0.9  # the weight of the past against one more launch
    overhead: float = field(init=False, default=0.0)
    """Seconds that a launch has recently taken beyond its share of a step."""

    def seconds(self, rows: int, share: float) -> float:
        """Returns the time of a launch over this many rows."""
        if self.calibrated is None:
            return 0.0
        return self.read(rows, share) + max(0.0, self.overhead)

    @property
    def token(self) -> float:
        """The seconds to read a token of a prompt, at most: a chunk has more rows than a step that is timed."""
        return 0.0 if self.calibrated is None else self.calibrated.seconds(READ) / READ

    def read(self, rows: int, share: float) -> float:
        """Returns the time that a step saves if it need not read this share."""
        return 0.0 if self.calibrated is None else share * self.calibrated.seconds(rows)

    def observe(self, rows: int, share: float, seconds: float) -> None:
        """Observes a launch's time; an outlier is ignored, as it says nothing about the next launch."""
        if self.calibrated is None:
            return
        step = self.calibrated.seconds(rows)
        if seconds < 4 * (share * step + self.calibrated.seconds(1)):
            self.overhead += (1 - self.memory) * (seconds - share * step - self.overhead)


@dataclass
class Allowance:
    """The time that may be spent on searches, as a share of the time of all steps."""

    share: float = 0.005
    _earned: float = field(init=False, default=0.0)

    def earn(self, seconds: float) -> None:
        """Records a step of `seconds`. No more is saved than a few searches would use up."""
        self._earned = min(self._earned + self.share * seconds, SAVED * seconds)

    def spend(self, seconds: float) -> None:
        self._earned -= seconds

    @property
    def positive(self) -> bool:
        """Whether there is time for a search, which may then take longer than was saved up."""
        return self._earned > 0
