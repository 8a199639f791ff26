"""A folder of dumps: the IR after every pass, the kernels, and `dump.json`, which says what the files are.

A folder holds one dump. A new one replaces it whole, unless a file was edited since, or is none of a dump's.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forerun.codegen.kernel_places import alike, places
from forerun.codegen.program import NUMBER, Program
from forerun.errors import InvalidOptionError
from forerun.installed import versions
from forerun.storage import INCOMPLETE, write_atomically

if TYPE_CHECKING:
    from forerun.ir import ModuleOp
    from forerun.passes.pipeline import PassRecord

MANIFEST = "dump.json"
KERNELS = "kernels"
IMPORTED = "import"
LIBRARIES = ("torch", "xdsl", "apache-tvm", "triton", "onnx", "transformers")
"""The packages whose versions a dump names, where they are installed."""


@dataclass(frozen=True)
class Selection:
    """Which modules a dump holds, and how.

    full            all layers, instead of those that are alike once: what `forerun-opt` can read
    changed         only after passes that changed something
    before, after   only before and after passes of these names, if there are any
    """

    full: bool = False
    changed: bool = False
    before: frozenset[str] = frozenset()
    after: frozenset[str] = frozenset()

    def wants(self, name: str, changed: bool) -> bool:
        """Whether the module after a pass is written."""
        if self.before or self.after:
            return name in self.after
        return changed or not self.changed


@dataclass
class DumpFolder:
    """Writes a dump. Call `observe` for every pass, `kernels` once, and `finish` at the end."""

    folder: Path
    selection: Selection = Selection()
    files: dict[str, str] = field(default_factory=dict[str, str])
    """The digest of each file, by its path in the folder."""
    passes: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    _program: dict[str, Any] = field(default_factory=dict[str, Any])
    _text: str = ""
    _last: str = ""
    """The file that holds the last text."""

    @staticmethod
    def of(folder: Path, selection: Selection = Selection()) -> DumpFolder:
        """Returns a dump that will be in a folder, of which an earlier dump is removed.

        Raises `InvalidOptionError` if the folder holds anything else, or a file of the dump that was edited since.
        """
        _clear(folder)
        dump = DumpFolder(folder, selection)
        write_atomically(folder / MANIFEST, dump._manifest({}))
        return dump

    def observe(self, record: PassRecord | None, module: ModuleOp) -> None:
        """Writes the module as imported, or after a pass (`passes.pipeline.Observer`)."""
        from forerun.ir import print_ir

        text = print_ir(module, locations=True)
        if record is None:
            self._text = text
            if self.selection.wants(IMPORTED, True):
                self._last = self._module(f"00_{IMPORTED}.mlir", "// as imported\n", text)
            return
        number, changed, name = len(self.passes) + 1, text != self._text, record.name.replace("-", "_")
        written: list[str] = []
        if record.name in self.selection.before:
            written.append(self._module(f"{number:02d}_before_{name}.mlir", f"// before {record.name}\n", self._text))
        if self.selection.wants(record.name, changed):
            own, header = f"{number:02d}_{name}.mlir", record.header(changed)
            if changed or not self._last:
                written.append(self._module(own, header, text))
            else:
                written.append(self.write(own, f"{header}// the module is that of {self._last}\n"))
        if changed:
            self._last = written[-1] if written and self.selection.wants(record.name, True) else ""
        self._text = text
        self.passes.append({**record.to_dict(), "changed": changed, "files": written})

    def kernels(self, program: Any, texts: Mapping[str, str]) -> None:
        """Writes the kernels' texts, by the name of a file, and notes what a back end's program says of them."""
        for name, text in texts.items():
            self.write(f"{KERNELS}/{name}", text)
        plain = getattr(program, "program", None)
        if isinstance(plain, Program):
            self._program = {"kernels": self._listed(plain), "memory": memory(plain)}

    def _listed(self, program: Program) -> list[dict[str, Any]]:
        """What is known of every distinct kernel."""
        used = places(program)
        return [
            {
                "name": alike(used[name][0]),
                "source": name,
                "kind": each.kind,
                "places": used[name],
                "files": [file for file in self.files if Path(file).stem == name],
            }
            for name, each in program.sources.items()
        ]

    def write(self, name: str, text: str) -> str:
        """Writes one more file of the dump, which `dump.json` lists first. Returns its name."""
        self.files[name] = _digest(text.encode())
        write_atomically(self.folder / MANIFEST, self._manifest({}))
        write_atomically(self.folder / name, text)
        return name

    def finish(self, model: str, options: Mapping[str, Any]) -> None:
        """Writes `dump.json`: model, options, versions, passes, kernels, memory, and the digests of the files."""
        given = {name: each for name, each in options.items() if isinstance(each, str | int | float | bool | None)}
        said = {"model": model, "target": options.get("target"), "options": given, **self._program}
        write_atomically(self.folder / MANIFEST, self._manifest(said))

    def _module(self, name: str, header: str, text: str) -> str:
        from forerun.ir.folded import folded

        shown = text if self.selection.full else folded(text)
        if shown != text:
            header += (
                "// layers that are alike are written once; --full writes all of them, as forerun-opt reads them\n"
            )
        return self.write(name, header + shown)

    def _manifest(self, said: Mapping[str, Any]) -> str:
        whole = {"forerun": metadata.version("forerun"), "versions": versions(LIBRARIES), **said}
        return json.dumps({**whole, "passes": self.passes, "files": self.files}, indent=1) + "\n"


def memory(program: Program) -> dict[str, Any]:
    """Returns the bytes of weights, of states and of the arena, and where each result of a kernel lies there."""
    states = {
        name: {"per": each.per, "shape": each.shape, "bytes": each.words * NUMBER}
        for name, each in program.states.items()
    }
    values = [
        {
            "kernel": kernel.name,
            "value": value.name,
            "dims": value.dims,
            "dtype": value.dtype,
            "at": value.place * NUMBER,
        }
        for kernel in program.kernels
        for value in kernel.results
    ]
    return {
        "weights": sum(each.bytes for each in program.weights.values()),
        "arena": program.memory * NUMBER,
        "positions of a block": program.block,
        "states": states,
        "values": values,
    }


def read_manifest(folder: Path) -> dict[str, Any]:
    """Returns what `dump.json` says. Raises `InvalidOptionError` if a folder holds no dump."""
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidOptionError(
            f"{str(folder)!r} holds no dump ({MANIFEST}: {error}); give a folder that forerun dump wrote."
        ) from error
    if not _is_manifest(found):
        raise InvalidOptionError(f"{MANIFEST} in {str(folder)!r} is not one of a dump; dump the model again.")
    return found


def _is_manifest(found: Any) -> bool:
    """Whether data has what is read of a manifest."""
    try:
        for each in found["passes"]:
            _ = each["name"], each["after"], each["notes"], each["patterns"].items()
            _ = [(change["operation"], change["count"] + 0) for change in each["changes"]]
        for each in found.get("kernels", ()):
            _ = each["source"], len(each["places"])
        return all(".." not in Path(each).parts for each, _ in found["files"].items())
    except (KeyError, TypeError, AttributeError):
        return False


def _clear(folder: Path) -> None:
    """Removes an earlier dump."""
    inside = folder.rglob("*") if folder.is_dir() else ()
    present = {each for each in inside if not each.is_dir() and not each.name.startswith(INCOMPLETE)}
    if not present:
        return
    if folder / MANIFEST not in present:
        raise InvalidOptionError(
            f"{str(folder)!r} holds {min(present).relative_to(folder)} and no dump; give a new or an empty folder."
        )
    known = {folder / name: digest for name, digest in read_manifest(folder)["files"].items()}
    for each in sorted(present - {folder / MANIFEST}):
        if known.get(each) != _digest(each.read_bytes()):
            what = "was edited since" if each in known else "is none of its files"
            raise InvalidOptionError(
                f"{str(folder)!r} holds a dump, and {each.relative_to(folder)} {what}; move it away, or "
                "give another folder."
            )
    for each in present:
        each.unlink()
    _remove_empty(each.parent for each in present if each.parent != folder)


def _remove_empty(folders: Iterable[Path]) -> None:
    for each in sorted(set(folders), reverse=True):
        with contextlib.suppress(OSError):  # a folder of somebody else's in it stays
            each.rmdir()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
