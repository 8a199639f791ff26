"""What drafting costs: the price of a launch that reads a share of what a step reads, and time saved for trials."""

from dataclasses import dataclass, field

from forerun.runtime.calibration import CostModel

SAVED = 4
"""The most time that an allowance holds, in steps."""
PLAIN_EVERY = 64
"""Iterations with a draft after which one without is due, for comparison."""


@dataclass
class LaunchCost:
    """The seconds of a draft's launch: its share of a step of as many rows, plus a recently measured overhead.

    All seconds are the calibration's: if the machine is slower now, steps and launches are slower alike.

    `calibrated` is t(n) of the whole step; without it launches cost nothing, for policies that ignore time.
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
    """The time that may be spent on trials that do not pay yet, as a share of the time of all steps."""

    share: float = 0.005
    _earned: float = field(init=False, default=0.0)

    def earn(self, seconds: float) -> None:
        """Records a step of `seconds`. No more is saved than a few trials would use up."""
        self._earned = min(self._earned + self.share * seconds, SAVED * seconds)

    def spend(self, seconds: float) -> None:
        self._earned -= seconds

    @property
    def positive(self) -> bool:
        """Whether there is time for a trial, which may then take longer than was saved up."""
        return self._earned > 0


@dataclass
class Balance:
    """Whether drafting pays by the clock: compares tokens and seconds of iterations with and without a draft.

    The expected cost and gain of a launch leave out what cannot be known in advance: how a late entry slows the step
    down, or what other drafters would have proposed anyway.
    """

    plain_seconds: float  # of an iteration without a draft, before one was seen
    memory: float = 0.95  # the weight of the past against one more iteration
    patience: int = 8  # drafted iterations before they are judged
    _turns: int = field(init=False, default=0)
    _drafted: list[float] = field(init=False, default_factory=lambda: [0.0, 0.0])  # tokens, seconds
    _plain: list[float] = field(init=False)
    _since_plain: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self._plain = [1.0, self.plain_seconds]

    def observe(self, drafted: bool, tokens: int, seconds: float) -> None:
        """Observes an iteration, with or without a draft."""
        if self.plain_seconds == 0 or seconds > 32 * self.plain_seconds:
            return  # time does not count, or something else used it
        self._since_plain = self._since_plain + 1 if drafted else 0
        kept = self._drafted if drafted else self._plain
        memory = min(self.memory, 1 - 1 / (self._turns + 1)) if drafted else self.memory
        self._turns += drafted
        for index, value in enumerate((tokens, seconds)):
            kept[index] = memory * kept[index] + (1 - memory) * value

    def pays(self, price: float) -> bool:
        """Whether drafting pays at `price` tokens per second. A hardly tried draft is assumed to pay."""
        if price == 0 or self._turns < self.patience:
            return True
        return self._drafted[0] - self._plain[0] >= price * (self._drafted[1] - self._plain[1])

    @property
    def lacks_plain_turns(self) -> bool:
        """Whether an iteration without a draft is due: other drafters' proposals and iteration times change."""
        return self._since_plain >= PLAIN_EVERY
