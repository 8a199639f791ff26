"""What every certificate says: what was compared, how much of it differs, and where first."""

from dataclasses import asdict
from typing import Any, cast


class Report:
    """A certificate; the dataclass that inherits it says what is counted."""

    differences: int
    first: Any  # the first difference, which prints itself; None if there is none

    @property
    def compared(self) -> str:
        """What was compared, in words."""
        raise NotImplementedError

    @property
    def exact(self) -> bool:
        return self.differences == 0

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(cast("Any", self)), "exact": self.exact}

    def __str__(self) -> str:
        told = "all bits equal" if self.exact else f"{self.differences} differ\n{self.first}"
        return f"{self.compared}: {told}"
