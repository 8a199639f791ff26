"""What drafting costs: the price of a launch that reads a share of what a step reads, and time kept for trying."""

from dataclasses import dataclass, field

from forerun.runtime.calibration import CostModel


@dataclass
class LaunchCost:
    """Seconds of a draft's launch: its share of a step of as many rows, and what comes on top, as measured of late.

    `calibrated` is t(n) of the whole step; without it launches cost nothing, as befits a policy for which time does
    not count.
    """

    calibrated: CostModel | None
    memory: float = 0.9  # what the past weighs against one more launch
    overhead: float = field(init=False, default=0.0)
    """Seconds a launch takes beside its share of a step; less than none where its weights stay in a processor cache."""

    def seconds(self, rows: int, share: float) -> float:
        """Of a launch of so many rows."""
        if self.calibrated is None:
            return 0.0
        expected = share * self.calibrated.seconds(rows)
        return max(0.1 * expected, expected + self.overhead)

    def observe(self, rows: int, share: float, seconds: float) -> None:
        """A launch took so long; what is out of all proportion says nothing of the next one."""
        if self.calibrated is None:
            return
        step = self.calibrated.seconds(rows)
        if seconds < 4 * (share * step + self.calibrated.seconds(1)):
            self.overhead += (1 - self.memory) * (seconds - share * step - self.overhead)


@dataclass
class Allowance:
    """Time that may be spent on finding out what does not pay yet, as a share of the time of all steps."""

    share: float = 0.01
    _earned: float = field(init=False, default=0.0)

    def earn(self, seconds: float) -> None:
        """A step of so many seconds went by."""
        self._earned += self.share * seconds

    def spend(self, seconds: float) -> None:
        self._earned -= seconds

    @property
    def positive(self) -> bool:
        """Whether there is time to try something, which may then take longer than what was saved up."""
        return self._earned > 0
