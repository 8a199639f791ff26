"""The errors, each with one sentence that names the cause and the remedy.

Every error that forerun raises on purpose is a `ForerunError`; the command line prints its sentence and exits with 2.
"""


class ForerunError(Exception):
    """The base of all errors that a user can act on."""


class SourceNotFoundError(ForerunError):
    """A path that does not exist."""


class NotAModelError(ForerunError):
    """A source without a model that forerun can load."""


class CorruptFileError(ForerunError):
    """A model file that ends early or cannot be parsed."""


class TraceError(ForerunError):
    """A model that `torch.export` cannot trace."""


class LookAheadError(ForerunError):
    """A model whose value at one position depends on later positions: it cannot be decoded incrementally."""


class UnsupportedOperationError(ForerunError):
    """An operation without a rule."""


class VerificationError(ForerunError):
    """IR that breaks a rule of the `spec` dialect."""


class PassError(ForerunError):
    """A module that a pass cannot work on: it lacks something, or has what the pass would add."""


class InvalidOptionError(ForerunError):
    """An option out of range, or options that contradict each other."""


class UnknownStrategyError(InvalidOptionError):
    """A strategy name that is not in the list."""


class UnknownTargetError(InvalidOptionError):
    """A target name that is not in the list."""


class DeviceError(ForerunError):
    """A target whose device is missing on this machine or too old."""


class DeviceMemoryError(DeviceError):
    """A model for which the device has too little memory."""


class DistributedError(ForerunError):
    """A rank that does not answer, answers something else than it should, or was started with another model."""


class PlanningError(ForerunError):
    """A description of a model, of hardware or of measured times that cannot be used, or limits that no plan meets."""


class ForkError(ForerunError):
    """A use, in a forked process, of what only the parent process can use."""


class PromptError(ForerunError):
    """A prompt that is empty or holds token ids outside the vocabulary."""


class NotANumberError(ForerunError):
    """NaN logits where a token is to be chosen: `token_id` is the first one in the row at `position`."""

    def __init__(self, position: int, token_id: int) -> None:
        super().__init__(
            f"the logits at position {position} are not numbers (NaN; token id {token_id} is the first): the model's "
            "weights are damaged or its arithmetic overflows; try another dtype, or give allow_nan=True, so that NaN "
            "counts as the smallest logit"
        )
        self.position, self.token_id = position, token_id


class TooLongError(ForerunError):
    """A prompt and its new tokens that together exceed `max_length`, or a tree over its budget."""


def first_sentence(error: BaseException) -> str:
    """The start of a library's error, short enough to quote inside a sentence."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = (lines[0] if lines else type(error).__name__).split(". ")[0].rstrip(".:! ")
    return text if len(text) <= 160 else text[:157] + "..."
