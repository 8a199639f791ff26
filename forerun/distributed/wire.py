"""Arrays from rank to rank, by torch.distributed: orders of the first rank, and payloads of steps.

Both begin with a few numbers that say what follows, so that what does not fit is an error and not a wrong number.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from forerun.distributed.layout import Layout
from forerun.errors import DistributedError, first_sentence
from forerun.runtime.executable import Exchange

ORDERS = 0
"""The tag of orders; payloads of group g have g + 1."""
SEAL = 32
"""Bytes in front of a payload: the digest of its name, element type and shape."""
DTYPES = (np.dtype(np.int32), np.dtype(np.float32), np.dtype(np.int64))
HEADER = 64
"""Numbers in front of an order: its kind, how many arrays, and for each its element type, rank and sizes."""
PATIENCE = 60.0
"""Seconds."""
IDLE = timedelta(days=3650)


class Wire:
    """This rank's connections. `DistributedError` names the rank that does not answer, or answers something else.

    patience    seconds after which a rank that sends no payload, or receives none, counts as lost. For orders of the
                first rank, the others wait as long as it takes
    largest     bytes of the largest payload that any rank may send. gloo ends a process to which more is sent than it
                has room for, so there is room for that much, whatever is expected
    """

    def __init__(
        self, layout: Layout, largest: int, group: dist.ProcessGroup | None = None, patience: float = PATIENCE
    ) -> None:
        world = group or dist.group.WORLD
        assert world is not None
        self.layout, self.group, self.largest = layout, world, largest
        self.rank, self.patience = self.group.rank(), timedelta(seconds=patience)
        self._free: list[torch.Tensor] = []  # buffers that nothing is received into
        self.sent: list[tuple[int, dist.Work, torch.Tensor]] = []
        self.bytes = {"sent": 0, "received": 0}
        """The bytes of payloads so far, seals not counted."""

    # --- orders

    def order(self, ranks: Sequence[int], kind: int, arrays: Sequence[NDArray[Any]]) -> None:
        """Gives ranks an order."""
        header = np.zeros(HEADER, np.int64)
        fields = [
            kind,
            len(arrays),
            *(f for each in arrays for f in (DTYPES.index(each.dtype), each.ndim, *each.shape)),
        ]
        header[: len(fields)] = fields
        body = b"".join(np.ascontiguousarray(each).tobytes() for each in arrays)
        for rank in ranks:
            self._post(rank, torch.from_numpy(header), ORDERS)
            if body:
                self._post(rank, torch.frombuffer(bytearray(body), dtype=torch.uint8), ORDERS)
        self.flush()

    def next_order(self) -> tuple[int, list[NDArray[Any]]]:
        """Waits for an order of the first rank."""
        header = np.zeros(HEADER, np.int64)
        self._wait(0, self._into(0, torch.from_numpy(header), ORDERS), IDLE)
        kind, count, *fields = header.tolist()
        described: list[tuple[np.dtype[Any], list[int]]] = []
        for _ in range(count):
            (dtype, rank, *fields) = fields
            described.append((DTYPES[dtype], fields[:rank]))
            fields = fields[rank:]
        sizes = [int(np.prod(shape)) * dtype.itemsize for dtype, shape in described]
        body = np.zeros(sum(sizes), np.uint8)
        if len(body):
            self._wait(0, self._into(0, torch.from_numpy(body), ORDERS))
        arrays: list[NDArray[Any]] = []
        at = 0
        for (dtype, shape), size in zip(described, sizes, strict=True):
            arrays.append(body[at : at + size].view(dtype).reshape(shape))
            at += size
        return kind, arrays

    # --- payloads

    def send(self, rank: int, payload: str, array: NDArray[Any], tag: int) -> None:
        """Sends a copy of an array; it may be changed at once."""
        if array.nbytes > self.largest:
            raise DistributedError(f"{payload} has {array.nbytes} bytes, and payloads have at most {self.largest}.")
        data = np.empty(SEAL + array.nbytes, np.uint8)
        data[:SEAL] = _seal(payload, array.dtype, array.shape)
        data[SEAL:] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self.bytes["sent"] += array.nbytes
        self._post(rank, torch.from_numpy(data), tag)

    def expect(self, rank: int, exchange: Exchange, array: NDArray[Any], tag: int) -> Expected:
        """Begins to receive an array."""
        buffer = self._free.pop() if self._free else torch.empty(SEAL + self.largest, dtype=torch.uint8)
        return Expected(self, rank, exchange.payload, array, buffer, self._into(rank, buffer, tag))

    def received(self, expected: Expected) -> None:
        """Waits for an array, and fills it. Raises `DistributedError` if something else came."""
        rank, payload, array = expected.rank, expected.payload, expected.array
        self._wait(rank, expected.work)
        data = expected.buffer.numpy()
        if not np.array_equal(data[:SEAL], _seal(payload, array.dtype, array.shape)):
            raise DistributedError(
                f"{self.layout.named(rank)} sent something else than {payload}, {array.dtype} {list(array.shape)}: "
                "start all ranks with the same model and options."
            )
        array[...] = data[SEAL : SEAL + array.nbytes].view(array.dtype).reshape(array.shape)
        self._free.append(expected.buffer)
        self.bytes["received"] += array.nbytes

    def flush(self) -> None:
        """Waits until everything is sent."""
        for rank, work, _ in self.sent:
            self._wait(rank, work)
        self.sent.clear()

    # --- one tensor

    def _post(self, rank: int, tensor: torch.Tensor, tag: int) -> None:
        with self._with(rank):
            self.sent.append((rank, self.group.send([tensor], rank, tag), tensor))

    def _into(self, rank: int, tensor: torch.Tensor, tag: int) -> dist.Work:
        with self._with(rank):
            return self.group.recv([tensor], rank, tag)

    def _wait(self, rank: int, work: dist.Work, patience: timedelta | None = None) -> None:
        with self._with(rank):
            work.wait(patience or self.patience)

    @contextmanager
    def _with(self, rank: int) -> Generator[None]:
        try:
            yield
        except (RuntimeError, ValueError) as error:
            raise self.lost(rank, error) from error

    def lost(self, rank: int, error: Exception) -> DistributedError:
        return DistributedError(
            f"{self.layout.named(rank)} does not answer ({first_sentence(error)}): look at what it has printed, and "
            "start all ranks again."
        )


@dataclass(frozen=True)
class Expected:
    """An array that is on its way."""

    wire: Wire
    rank: int
    payload: str
    array: NDArray[Any]
    buffer: torch.Tensor
    work: dist.Work

    def wait(self) -> None:
        self.wire.received(self)


@lru_cache(4096)
def _seal(payload: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    text = f"{payload} {dtype} {shape}"
    return np.frombuffer(hashlib.blake2b(text.encode(), digest_size=SEAL).digest(), np.uint8)
