"""What drafting costs: the price of a launch that reads a share of what a step reads, and time kept for trying."""

from dataclasses import dataclass, field

from forerun.runtime.calibration import CostModel

SAVED = 4
"""Steps' time that an allowance holds at most."""
PLAIN_EVERY = 64
"""Turns with a draft after which one without is due, to compare with."""


@dataclass
class LaunchCost:
    """Seconds of a draft's launch: its share of a step of as many rows, and what comes on top, as measured of late.

    All seconds are the calibration's: where the machine is slower now, steps and launches are alike.

    `calibrated` is t(n) of the whole step; without it launches cost nothing, as befits a policy for which time does
    not count.
    """

    calibrated: CostModel | None
    memory: float = 0.9  # what the past weighs against one more launch
    overhead: float = field(init=False, default=0.0)
    """Seconds that a launch takes beside its share of a step, as it does of late."""

    def seconds(self, rows: int, share: float) -> float:
        """The time of a launch over this many rows."""
        if self.calibrated is None:
            return 0.0
        return self.read(rows, share) + max(0.0, self.overhead)

    def read(self, rows: int, share: float) -> float:
        """What a step is spared that need not read so much."""
        return 0.0 if self.calibrated is None else share * self.calibrated.seconds(rows)

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

    share: float = 0.005
    _earned: float = field(init=False, default=0.0)

    def earn(self, seconds: float) -> None:
        """A step of so many seconds went by. What a few trials would not use up is not saved."""
        self._earned = min(self._earned + self.share * seconds, SAVED * seconds)

    def spend(self, seconds: float) -> None:
        self._earned -= seconds

    @property
    def positive(self) -> bool:
        """Whether there is time to try something, which may then take longer than what was saved up."""
        return self._earned > 0


@dataclass
class Balance:
    """Whether drafting pays by the clock: tokens and seconds of turns with a draft, beside those of turns without.

    What a launch is expected to cost and bring leaves out what cannot be told in advance: how a late entry slows the
    step down, or what other drafters had proposed anyway.
    """

    plain_seconds: float  # a turn without a draft, before one was seen
    memory: float = 0.95  # what the past weighs against one more turn
    patience: int = 8  # drafted turns before they are judged
    _turns: int = field(init=False, default=0)
    _drafted: list[float] = field(init=False, default_factory=lambda: [0.0, 0.0])  # tokens, seconds
    _plain: list[float] = field(init=False)
    _since_plain: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self._plain = [1.0, self.plain_seconds]

    def observe(self, drafted: bool, tokens: int, seconds: float) -> None:
        """A turn, with or without a draft."""
        if self.plain_seconds == 0 or seconds > 32 * self.plain_seconds:
            return  # time does not count, or something else took it
        self._since_plain = self._since_plain + 1 if drafted else 0
        kept = self._drafted if drafted else self._plain
        memory = min(self.memory, 1 - 1 / (self._turns + 1)) if drafted else self.memory
        self._turns += drafted
        for index, value in enumerate((tokens, seconds)):
            kept[index] = memory * kept[index] + (1 - memory) * value

    def pays(self, price: float) -> bool:
        """At so many tokens a second. A draft that was hardly tried is believed to."""
        if price == 0 or self._turns < self.patience:
            return True
        return self._drafted[0] - self._plain[0] >= price * (self._drafted[1] - self._plain[1])

    @property
    def lacks_plain_turns(self) -> bool:
        """Whether a turn without a draft is due: what others propose, and what a turn takes, changes."""
        return self._since_plain >= PLAIN_EVERY
