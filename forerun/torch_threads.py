"""torch's own threads, which wait for each other after every operation."""

from collections.abc import Generator
from contextlib import contextmanager

import torch


@contextmanager
def one_torch_thread() -> Generator[None]:
    """Runs torch's operations in the threads that call them, those of a new pool included.

    Where operations are small, or a thread pool shares the work, torch's threads would spend longer waiting than
    working: 5 to 50 times as long on a busy machine.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
