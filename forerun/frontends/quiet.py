"""Libraries kept from writing to the terminal, and their errors quoted in a few words."""

import contextlib
import io
import logging
import warnings
from collections.abc import Generator
from contextlib import contextmanager

from transformers.utils import logging as transformers_logging


@contextmanager
def quiet_libraries() -> Generator[None]:
    """No warnings, log lines, printed graphs or progress bars from torch and transformers while the body runs."""
    disabled = logging.root.manager.disable
    bars = transformers_logging.is_progress_bar_enabled()
    logging.disable(logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    sink = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        if bars:
            transformers_logging.enable_progress_bar()


def first_sentence(error: BaseException) -> str:
    """What a library's error says first, short enough to quote inside a sentence."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = (lines[0] if lines else type(error).__name__).split(". ")[0].rstrip(".:! ")
    return text if len(text) <= 160 else text[:157] + "..."
