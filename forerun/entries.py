"""Folders kept between runs, each with a list of its files' checksums: a folder that differs from its list is invalid.

A folder is written under another name and renamed when complete. Readers change nothing, so that no reader, writer or
remover breaks another: a process that finds an incomplete folder does without it and writes a new one in its place.
"""

import contextlib
import errno
import json
import os
import shutil
import tempfile
import time
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any

from forerun.digests import file_digest, known_digest
from forerun.errors import CorruptFileError

CHECKSUMS = "checksums.json"
UNFINISHED = ".unfinished-"
ABANDONED = 3600.0
"""Seconds after which an unfinished folder's writer is presumed dead."""


class Entry:
    """A kept folder opened for reading. Raises `CorruptFileError` if its list and its files differ."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with self._whole():
            present = _files(folder)  # first, because reading a pipe in a file's place would wait forever
            listed: Any = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
            self._digests: dict[str, str] = dict(listed)
            if sorted(self._digests) != sorted(present):
                raise ValueError("files are missing or were added")

    def read(self, name: str) -> bytearray:
        """Returns the checked bytes of a file. Raises `CorruptFileError`."""
        with self._whole():
            content = bytearray((self.folder / name).stat().st_size)
            self._compare(name, file_digest(self.folder / name, memoryview(content)))
        return content

    def read_into(self, name: str, buffer: memoryview) -> None:
        """Reads a large file into a buffer of its size. Raises `CorruptFileError`.

        The bytes are checked while read, unless an earlier run checked them and the file has not changed since.
        """
        with self._whole():
            self._compare(name, known_digest(self.folder / name, buffer))

    def _compare(self, name: str, digest: str) -> None:
        if digest != self._digests.get(name):
            raise ValueError(f"{name} has changed since it was written")

    def check(self, names: Iterable[str]) -> None:
        """Checks files that another library reads. Raises `CorruptFileError`."""
        for name in names:
            self.read(name)

    def under(self, folder: str) -> list[str]:
        """Returns the names of the files in a folder of the entry."""
        return [name for name in self._digests if name.startswith(f"{folder}/")]

    @contextlib.contextmanager
    def _whole(self) -> Generator[None]:
        try:
            yield
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise CorruptFileError(f"{self.folder} has changed since it was written ({error}).") from error


@contextlib.contextmanager
def new_entry(folder: Path) -> Generator[Path]:
    """Yields a new folder, which gets its list and name once the body has filled it, and replaces an older one.

    Raises OSError.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    _sweep(folder.parent)
    unfinished = Path(tempfile.mkdtemp(dir=folder.parent, prefix=UNFINISHED))
    try:
        yield unfinished
        digests = {name: file_digest(unfinished / name) for name in _files(unfinished)}
        (unfinished / CHECKSUMS).write_text(json.dumps(digests), encoding="utf-8")
        remove(folder)
        try:
            unfinished.rename(folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # these mean that another process was faster
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def remove(folder: Path) -> None:
    """Removes an entry, valid or not, atomically for all readers. Raises OSError."""
    aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=UNFINISHED))
    with contextlib.suppress(FileNotFoundError):  # another process was faster
        folder.rename(aside / folder.name)
    shutil.rmtree(aside, ignore_errors=True)


def _files(folder: Path) -> list[str]:
    """Returns the files of a folder except its list. Raises ValueError if it holds more than files and folders."""
    found: list[str] = []
    for where, _, names in os.walk(folder):
        for each in (Path(where, name) for name in names):
            if each.is_symlink() or not each.is_file():
                raise ValueError(f"{each.name} is not a plain file")
            found.append(each.relative_to(folder).as_posix())
    return [name for name in found if name != CHECKSUMS]


def _sweep(parent: Path) -> None:
    """Removes what dead writers have left."""
    for each in parent.glob(f"{UNFINISHED}*"):
        with contextlib.suppress(OSError):
            if time.time() - each.stat().st_mtime > ABANDONED:
                shutil.rmtree(each, ignore_errors=True)
