"""A schedule changes a kernel's code and none of its bits; bad schedules are refused in a sentence."""

from functools import cache
from typing import Any

import numpy as np
import pytest
from tvm_ffi import structural_equal

from forerun.build import Lowered, lower
from forerun.codegen.tvm.layout import TvmProgram
from forerun.codegen.tvm.lowering import Lowering
from forerun.errors import InvalidOptionError
from forerun.execute.tvm.executable import TvmExecutable, bind
from forerun.execute.tvm.versions import TvmVersions
from forerun.progress import SilentProgress
from forerun.runtime.certify_kernel import certify_kernel
from forerun.runtime.executable import WHOLE
from forerun.runtime.trial import Trial
from tests.compiled import planned_step
from tests.models import FAMILIES

LIMITS = {"max_rows": 64, "max_outputs": 64, "max_length": 128}


@cache
def lowered(dtype: str = "float32") -> Lowered:
    # Heads of 32 numbers in groups of 4, and rows of more vectors than are unrolled.
    sizes: dict[str, Any] = {"hidden_size": 160, "intermediate_size": 200, "head_dim": 40, "num_key_value_heads": 1}
    model = FAMILIES["llama"](**sizes)
    return lower(model, dtype, 128, progress=SilentProgress(), arithmetic=dtype)


@cache
def lowering(dtype: str = "float32") -> Lowering:
    return Lowering(planned_step(lowered(dtype).module, lowered(dtype).weights, **LIMITS))


@cache
def executable() -> TvmExecutable:
    return bind(lowering().program(), 2)


def kernel(kind: str, dtype: str = "float32") -> str:
    """The first kernel of a kind that has a schedule with which something changes."""
    return next(
        name
        for name, each in lowering(dtype).step.sources.items()
        if each.kind == kind and lowering(dtype).candidates(name, "")
    )


FIELDS = {
    ("products", "float32"): ("tile_rows = 5", "unroll = 3", "prefetch = 0", "prefetch = 64", "prefetch_rows = 1"),
    ("products", "bfloat16"): ("tile_rows = 5", "unroll = 3", "prefetch = 0", "prefetch = 64", "prefetch_rows = 1"),
    ("attention", "float32"): ("heads = 2", "scores = 8", "unroll = 2", "prefetch = 0", "prefetch = 2"),
    ("rows", "float32"): ("unroll = 16",),
}
CASES = [(kind, dtype, field) for (kind, dtype), fields in FIELDS.items() for field in fields]


@pytest.mark.parametrize(("kind", "dtype", "field"), CASES, ids=[" ".join(each) for each in CASES])
def test_a_field_changes_the_code_of_its_kernel_alone(kind: str, dtype: str, field: str) -> None:
    name = kernel(kind, dtype)
    before = lowering(dtype).kernel_functions()
    edited: Any = lowering(dtype).edited({name: field}).kernels
    after = edited.kernel_functions()
    different = [each for each in before if not structural_equal(before[each], after[each])]
    assert different == [name]
    assert edited.step.key != lowering(dtype).step.key
    assert edited.step.generated == lowering(dtype).step.generated
    assert list(edited.step.overrides) == [name]


@pytest.mark.parametrize(("kind", "dtype"), FIELDS, ids=[" ".join(each) for each in FIELDS])
def test_no_schedule_changes_a_bit(kind: str, dtype: str) -> None:
    name = kernel(kind, dtype)
    program = lowering(dtype).program()
    run = executable() if dtype == "float32" else bind(program, 2)
    texts = [*FIELDS[kind, dtype], "\n".join({each.split()[0]: each for each in FIELDS[kind, dtype]}.values())]
    versions = TvmVersions(program, run, name, ["", *texts])
    for version in range(1, len(texts) + 1):
        assert certify_kernel(versions, version, name, (1, 3, 14)) == 36


def test_the_default_schedule_is_the_generated_code() -> None:
    made = lowering()
    same = made.edited(made.schedules())
    assert same.program.key == made.step.key
    assert not same.program.overrides
    assert same.texts() == made.kernel_texts()


def test_an_edited_step_has_the_bits_of_the_generated_one() -> None:
    made = lowering()
    texts = {kernel("products"): "tile_rows = 3\nunroll = 2", kernel("attention"): "heads = 1\nscores = 4"}
    edited = bind(made.edited(texts), 1)
    assert set(edited.overrides) == set(texts)
    assert edited.overrides[kernel("attention")] == "heads 4 -> 1, scores 24 -> 4"
    found: list[list[Any]] = []
    for run in (executable(), edited):
        trial = Trial(run, 40)
        trial.begin()
        found.append([run.run(WHOLE, trial.state, trial.rows(count)).logits.copy() for count in (1, 2, 7, 33)])
    assert all(np.array_equal(*pair) for pair in zip(*found, strict=True))


BAD = {
    "tile_rows = 17": "tile_rows of the schedule of {name} is 17: give 1 to 16",
    "tile_rows = -1": "is -1: give 1 to 16",
    "tile_rows = many": "is many: give 1 to 16",
    "tile_row = 4": "has no field 'tile_row'; did you mean 'tile_rows'\\? Its fields are tile_rows, unroll",
    "tile_rows": "Line 1 of the schedule of {name} is 'tile_rows': write a field and its value, such as tile_rows = ",
    "# a\nunroll = 1\nunroll = 2": "gives unroll twice",
}


@pytest.mark.parametrize("text", BAD)
def test_a_bad_schedule_is_refused(text: str) -> None:
    name = kernel("products")
    with pytest.raises(InvalidOptionError, match=BAD[text].format(name=name)):
        lowering().edited({name: text})


def test_a_schedule_of_no_kernel_is_refused() -> None:
    made, name = lowering(), kernel("products")
    with pytest.raises(InvalidOptionError, match=rf"no kernel '{name}s'; did you mean '{name}'\?"):
        made.edited({f"{name}s": "unroll = 2"})
    single = next(each for each, source in made.step.sources.items() if source.kind == "topk")
    with pytest.raises(InvalidOptionError, match=f"{single} has only one schedule"):
        made.edited({single: "unroll = 2"})
    with pytest.raises(InvalidOptionError, match="give 1, 2 or 4"):
        made.edited({kernel("attention"): "heads = 3"})


def test_what_breaks_the_contract_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A template whose results depend on the schedule, which none may."""
    made = lowering()
    name = kernel("attention")

    def faulty(code: Any, nest: Any, machine: Any, schedule: Any) -> None:
        from dataclasses import replace

        scale = nest.scale if schedule.unroll == 4 else nest.scale * 1.0001
        emit(code, replace(nest, scale=scale), machine, schedule)

    templates: dict[str, Any] = made._templates
    emit = templates["attention"]
    monkeypatch.setitem(templates, "attention", faulty)
    program: TvmProgram = made.program()
    versions = TvmVersions(program, executable(), name, ["", "unroll = 2"])
    with pytest.raises(
        InvalidOptionError, match=f"{name} breaks the contract: row 0 has other bits than the generated"
    ):
        certify_kernel(versions, 1, name, (3,))
