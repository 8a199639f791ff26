"""Bundles on disk: a folder written as a whole or not at all, and nothing of it used before it has been checked."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from forerun.artifacts.manifest import ListedFile, Manifest
from forerun.entries import UNFINISHED
from forerun.errors import CorruptFileError, InvalidOptionError, SourceNotFoundError
from forerun.storage import BUNDLE, is_bundle

LONGEST = 1 << 26
"""The most bytes of a description."""
CHUNK = 1 << 24
"""Bytes that are read at a time while a file is checked."""


class Bundle:
    """A bundle opened for reading: its description, and files that are checked before they are used."""

    def __init__(self, folder: Path) -> None:
        """Raises `SourceNotFoundError`, and `CorruptFileError` for a description or files that are not whole."""
        self.folder = folder
        path = folder / BUNDLE
        try:
            if not path.is_file() or path.stat().st_size > LONGEST:  # a pipe would wait, and a device has no end
                raise FileNotFoundError(path)
            text = path.read_bytes()
        except OSError as error:
            raise SourceNotFoundError(
                f"{folder} holds no bundle (there is no readable {BUNDLE}): give the folder that forerun export wrote."
            ) from error
        self.manifest = Manifest.read(text, str(path))
        for name, listed in self.manifest.files.items():
            self._present(name, listed)

    def path(self, name: str) -> Path:
        """Returns the path of a listed file, whose bytes have been compared with their digest. `CorruptFileError`."""
        path, listed = self._listed(name)
        digest = hashlib.sha256()
        with path.open("rb", buffering=0) as file:
            while part := file.read(CHUNK):
                digest.update(part)
        self._compare(name, digest, listed)
        return path

    def read(self, name: str) -> bytes:
        """Returns the checked bytes of a listed file. Raises `CorruptFileError`."""
        path, listed = self._listed(name)
        content = path.read_bytes()
        self._compare(name, hashlib.sha256(content), listed)
        return content

    def read_into(self, name: str, buffer: memoryview) -> None:
        """Reads a listed file into a buffer of its size, and checks it. Raises `CorruptFileError`."""
        path, listed = self._listed(name)
        if buffer.nbytes != listed.bytes:
            raise CorruptFileError(f"{path} has {listed.bytes} bytes, not {buffer.nbytes}: export the model again.")
        digest, read = hashlib.sha256(), 0
        with path.open("rb", buffering=0) as file, ThreadPoolExecutor(1) as pool:
            hashed = pool.submit(lambda: None)
            while read < buffer.nbytes and (count := file.readinto(buffer[read : read + CHUNK])):
                hashed.result()  # a part is hashed while the next one is read
                hashed = pool.submit(digest.update, buffer[read : read + count])
                read += count
        self._compare(name, digest, listed)

    def _listed(self, name: str) -> tuple[Path, ListedFile]:
        listed = self.manifest.files.get(name)
        if listed is None:
            raise CorruptFileError(f"{self.folder / BUNDLE} lists no file {name!r}: export the model again.")
        return self.folder / name, listed

    def _present(self, name: str, listed: ListedFile) -> None:
        """Checks a file's path and size, before anything is read. Raises `CorruptFileError`."""
        parts = PurePosixPath(name)
        path = self.folder / name
        outside = not name.isprintable() or parts.is_absolute() or ".." in parts.parts or "\\" in name or ":" in name
        if outside or not self._inside(path):
            raise CorruptFileError(
                f"{self.folder / BUNDLE} names {name!r}, which leaves the folder: do not use a bundle that somebody "
                "changed; export the model again."
            )
        if not path.is_file():
            raise CorruptFileError(f"{path} is missing: copy the whole folder, or export the model again.")
        if path.stat().st_size != listed.bytes:
            raise CorruptFileError(
                f"{path} has {path.stat().st_size} bytes instead of {listed.bytes}: copy it again, or export the "
                "model again."
            )

    def _inside(self, path: Path) -> bool:
        try:
            return path.resolve().is_relative_to(self.folder.resolve())
        except (OSError, RuntimeError):  # a loop of links
            return False

    def check(self) -> None:
        """Compares all files with their digests. Raises `CorruptFileError`."""
        for name in self.manifest.files:
            self.path(name)

    def _compare(self, name: str, digest: Any, listed: ListedFile) -> None:
        if digest.hexdigest() != listed.sha256:
            raise CorruptFileError(
                f"{self.folder / name} has changed since it was written: copy it again, or export the model again."
            )


def require_new(folder: Path, force: bool) -> None:
    """Raises `InvalidOptionError` for a path that no bundle may take. `force` allows to replace a bundle, no more."""
    existing = next(each for each in (folder, *folder.parents) if os.path.lexists(each))
    if not existing.is_dir():
        raise InvalidOptionError(f"{existing} is a file: give the path of a folder for the bundle.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InvalidOptionError(f"{existing} cannot be written to: give a folder elsewhere.")
    if existing != folder:
        return
    if os.path.ismount(folder) or Path.cwd().is_relative_to(folder):
        raise InvalidOptionError(f"{folder} is in use as a folder: give a new one inside it.")
    if not any(folder.iterdir()):
        return
    if not is_bundle(folder):
        raise InvalidOptionError(f"{folder} is not empty, and no bundle that could be replaced: give another folder.")
    if not force:
        raise InvalidOptionError(
            f"{folder} is not empty: give another folder, or force=True (--force) to replace the bundle in it."
        )


@contextlib.contextmanager
def new_bundle(folder: Path, force: bool) -> Generator[Path]:
    """Yields a new folder beside `folder`, which takes its place once the body has filled it.

    Raises `InvalidOptionError` for what must not be replaced, and OSError. After an error, the place is as it was: an
    older bundle is moved aside before the new one gets its name, and back if it does not.
    """
    require_new(folder, force)
    made = [each for each in folder.parents if not each.exists()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        unfinished = Path(tempfile.mkdtemp(dir=folder.parent, prefix=UNFINISHED))
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from error
    aside = unfinished.with_name(f"{unfinished.name}-old")
    try:
        yield unfinished
        unfinished.chmod(0o755)
        require_new(folder, force)  # another process may have filled it meanwhile
        if is_bundle(folder):
            folder.rename(aside)
        elif folder.is_dir():
            folder.rmdir()
        unfinished.rename(folder)
        made = []
    except BaseException:
        if aside.is_dir() and not os.path.lexists(folder):
            aside.rename(folder)
        raise
    finally:
        for each in (unfinished, aside):
            shutil.rmtree(each, ignore_errors=True)
        for each in made:
            with contextlib.suppress(OSError):  # something else is in it
                each.rmdir()


def listed_files(folder: Path) -> dict[str, ListedFile]:
    """Returns the files of a folder, except its description, with their sizes and digests."""
    found: dict[str, ListedFile] = {}
    for path in sorted(each for each in folder.rglob("*") if each.is_file() and each.name != BUNDLE):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        found[path.relative_to(folder).as_posix()] = ListedFile(path.stat().st_size, digest)
    return found
