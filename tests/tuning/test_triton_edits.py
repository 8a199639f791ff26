"""An edited Triton source is checked against the generated one, in Triton's interpreter."""

from functools import cache
from typing import Any

import pytest

from forerun.build import Lowered, lower
from forerun.codegen.triton.lowering import emit
from forerun.errors import InvalidOptionError
from forerun.execute.triton.build import bind, edited, files
from forerun.execute.triton.versions import TritonVersions
from forerun.progress import SilentProgress
from forerun.runtime.certify_kernel import certify_kernel
from tests.compiled import planned_step
from tests.models import FAMILIES

pytest.importorskip("triton")
COUNTS = (2,)


@cache
def lowered() -> Lowered:
    return lower(FAMILIES["llama"](num_hidden_layers=1), max_length=64, progress=SilentProgress())


@cache
def program() -> Any:
    return emit(planned_step(lowered().module, lowered().weights, max_rows=64, max_outputs=64, max_length=64))


@cache
def executable() -> Any:
    return bind(program(), "cpu")


def products() -> str:
    return next(name for name, each in program().program.sources.items() if each.kind == "products")


def checked(text: str) -> int:
    return certify_kernel(TritonVersions(program(), executable(), products(), ["", text]), 1, products(), COUNTS)


def test_an_edit_that_keeps_all_bits_is_accepted() -> None:
    text = files(program())[f"{products()}.py"] + "\n\nUNUSED = 1\n"
    assert checked(text) == 4
    changed = edited(program(), {f"{products()}.py": text}).program
    assert changed.overrides == {products(): "its source"}
    assert changed.key != program().program.key


def test_an_edit_that_depends_on_the_number_of_rows_is_refused() -> None:
    sound = files(program())[f"{products()}.py"]
    broken = sound.replace(".to(tl.float32)\n", ".to(tl.float32) * (1.0 + N * 1e-6)\n")
    assert broken != sound
    with pytest.raises(InvalidOptionError, match=f"{products()} breaks the contract"):
        checked(broken)


def test_an_edit_that_fails_is_named() -> None:
    sound = files(program())[f"{products()}.py"]
    for broken in (sound.replace("tl.store(", "tl.stored("), "def kernel(:", "other = 1\n"):
        with pytest.raises(InvalidOptionError, match=rf"kernel {products()} .*; correct its file"):
            checked(broken)
