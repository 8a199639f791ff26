"""The planner's files and its command: what is read, what is refused and how, what is printed."""

import copy
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from forerun.cli import main
from forerun.errors import InvalidOptionError, PlanningError
from forerun.planning.hardware import read_hardware
from forerun.planning.measured import read_measured
from forerun.planning.pipeline import Batching, Placement, predict
from forerun.planning.planner import PlanOptions, plan
from forerun.planning.shape import read_shape
from forerun.planning.times import Roofline
from tests.planning.example_files import HARDWARE, MODELS, model_file

MODEL = yaml.safe_load(Path(model_file("step3")).read_text(encoding="utf-8"))
DEVICES = yaml.safe_load(Path(HARDWARE).read_text(encoding="utf-8"))


def written(folder: Path, content: object) -> str:
    path = folder / "file.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
    return str(path)


def changed(base: Any, *way: str, to: object = None) -> Any:
    """A copy of a description in which the field at the end of `way` is another, or missing."""
    result = copy.deepcopy(base)
    inner = result
    for name in way[:-1]:
        inner = inner[name]
    if to is None:
        del inner[way[-1]]
    else:
        inner[way[-1]] = to
    return result


BAD_MODELS: dict[str, tuple[object, str]] = {
    "not YAML": ("name: [", "is not YAML"),
    "not a mapping": ("- 1", "must be a mapping of names to values, not [1]"),
    "nothing": ("", "must be a mapping of names to values, not None"),
    "a missing field": (changed(MODEL, "vocabulary"), "lacks vocabulary"),
    "an unknown field": (changed(MODEL, "heads", to=3), "has no field 'heads': leave it out; the fields are"),
    "an unknown inner field": (changed(MODEL, "attention", "windows", to=3), "attention has no field 'windows'"),
    "a negative size": (changed(MODEL, "hidden", to=-1), "hidden must be an integer from 1 to 1e+12, not -1"),
    "a fraction of a layer": (changed(MODEL, "layers", to=1.5), "layers must be an integer"),
    "a date that is none": ("name: 2001-99-99", "is not YAML"),
    "a size past all bounds": (changed(MODEL, "hidden", to=10**400), "hidden must be an integer from 1 to 1e+12"),
    "a value that holds itself": ("name: &a [*a]\n", "lacks hidden"),
    "a truth": (changed(MODEL, "layers", to=True), "layers must be an integer from 1 to 1e+12, not True"),
    "bytes in letters": (
        changed(MODEL, "bytes", "cache", to="fp8"),
        "bytes: cache must be a number above 0, not 'fp8'",
    ),
    "no bytes": (changed(MODEL, "bytes", "weight", to=0), "weight must be a number above 0, not 0"),
    "infinite bytes": (changed(MODEL, "bytes", "weight", to=float("inf")), "weight must be a number above 0, not inf"),
    "an unknown dtype": (changed(MODEL, "dtype", to="fp7"), "there is no dtype 'fp7': give one of fp4, fp8"),
    "other layers": (changed(MODEL, "layers", to=60), "has 60 layers, but its ffn has 61"),
    "no layers": (changed(MODEL, "ffn", to={}), "ffn has neither dense nor experts"),
    "too many chosen": (changed(MODEL, "ffn", "experts", "chosen", to=49), "a row cannot choose 49 of 48 experts"),
    "heads that do not divide": (changed(MODEL, "attention", "kv_heads", to=3), "64 heads cannot share 3 kv_heads"),
    "half a latent": (changed(MODEL, "attention", "latent_dim", to=512), "attention lacks rotary_dim"),
    "text for a mapping": (changed(MODEL, "attention", to="MFA"), "attention must be a mapping"),
}

BAD_HARDWARE: dict[str, tuple[object, str]] = {
    "no devices": ({"devices": {}}, "has no devices"),
    "a missing price": (changed(DEVICES, "devices", "h20", "price"), "devices: h20 lacks price"),
    "a negative bandwidth": (
        changed(DEVICES, "devices", "h20", "memory_bandwidth", to=-1.0),
        "must be a number above 0",
    ),
    "a negative latency": (
        changed(DEVICES, "devices", "h20", "network", "latency", to=-1.0),
        "network: latency must be a number of at least 0, not -1.0",
    ),
    "an unknown dtype": (changed(DEVICES, "devices", "h20", "flops", to={"fp9": 1.0}), "'fp9' is no dtype"),
    "no dtype": (changed(DEVICES, "devices", "h20", "flops", to={}), "flops: there is no dtype"),
    "an unknown field": (changed(DEVICES, "devices", "h20", "colour", to="red"), "h20 has no field 'colour'"),
    "a part of a node": (changed(DEVICES, "devices", "h20", "node", to=0.5), "node must be an integer"),
}

BAD_TIMES: dict[str, tuple[object, str]] = {
    "nothing measured": ({"device": "h20"}, "has no measured times: give attention, ffn or link"),
    "no device": ({"attention": {1: 0.1}}, "lacks device"),
    "an unknown device": ({"device": "h21", "attention": {1: 0.1}}, "'h21', which is not in the hardware: h800, h20"),
    "another context": ({"device": "h20", "context": 99, "ffn": {1: 0.1}}, "give --context 99, or measure again"),
    "rows in letters": ({"device": "h20", "ffn": {"many": 0.1}}, "'many' is no number of rows"),
    "no seconds": ({"device": "h20", "ffn": {1: 0}}, "1 must be a number above 0, not 0"),
    "no rows": ({"device": "h20", "ffn": {}}, "ffn is empty"),
    "rows twice": ({"device": "h20", "ffn": {1: 0.1, "1.0": 0.2}}, "gives some number of rows twice"),
    "half a link": ({"device": "h20", "link": {"bandwidth": 1e9}}, "link lacks latency"),
    "an unknown field": ({"device": "h20", "ffn": {1: 0.1}, "head": 3}, "has no field 'head'"),
}


def refusal(read: Callable[[], object]) -> str:
    with pytest.raises(PlanningError) as raised:
        read()
    said = str(raised.value)
    assert "\n" not in said
    assert said.endswith(".")
    return said


@pytest.mark.parametrize("case", BAD_MODELS)
def test_bad_models(case: str, tmp_path: Path) -> None:
    content, expected = BAD_MODELS[case]
    file = written(tmp_path, content)
    said = refusal(lambda: read_shape(file))
    assert expected in said
    assert said.startswith(file)


@pytest.mark.parametrize("case", BAD_HARDWARE)
def test_bad_hardware(case: str, tmp_path: Path) -> None:
    content, expected = BAD_HARDWARE[case]
    assert expected in refusal(lambda: read_hardware(written(tmp_path, content)))


@pytest.mark.parametrize("case", BAD_TIMES)
def test_bad_times(case: str, tmp_path: Path) -> None:
    content, expected = BAD_TIMES[case]
    roofline = Roofline(read_shape(model_file("step3")), 4096)
    file = written(tmp_path, content)
    assert expected in refusal(lambda: read_measured(file, roofline, 4096, read_hardware(HARDWARE)))


def test_a_device_without_a_dtype_uses_a_wider_one(tmp_path: Path) -> None:
    found = {each.name: each for each in read_hardware(HARDWARE)}
    assert found["a800"].peak("fp8") == found["a800"].peak("bf16") == 3.12e14
    assert found["h20"].peak("fp4") == found["h20"].peak("fp8") == 2.96e14
    with pytest.raises(PlanningError, match="h20 has no FLOP/s for fp32, nor a wider dtype"):
        found["h20"].peak("fp32")
    single = changed(DEVICES, "devices", "h20", "flops", to="1e14")
    h20 = next(each for each in read_hardware(written(tmp_path, single)) if each.name == "h20")
    assert h20.peak("fp32") == 1e14


OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "no context": ({"context": 0}, "--context must be from 1 to 1e+12, not 0"),
    "no micro-batches": ({"micro_batches": 0}, "--micro-batches must be from 1"),
    "a context past all bounds": ({"context": 10**30}, "--context must be from 1 to 1e+12, not 1000"),
    "a negative batch": ({"batch": -1}, "--batch must be from 1"),
    "no latency": ({"latency": 0.0}, "--latency must be a number of milliseconds above 0"),
    "latency that is not a number": ({"latency": float("nan")}, "--latency must be"),
    "efficiency above 1": ({"efficiency": 1.1}, "--efficiency must be above 0 and at most 1, not 1.1"),
    "a sure acceptance": ({"acceptance": 1.0}, "--acceptance must be at least 0 and below 1, not 1"),
    "two kinds of acceptance": ({"acceptance": 0.5, "accepted": "1:1"}, "exclude each other"),
    "no pairs": ({"accepted": "4"}, "'4' is none"),
    "more accepted than rows": ({"accepted": "1:1,4:5"}, "'4:5' is none"),
    "letters": ({"accepted": "a:1"}, "'a:1' is none"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_bad_options(case: str) -> None:
    options, expected = OPTIONS[case]
    with pytest.raises(InvalidOptionError) as raised:
        PlanOptions(**options)
    assert expected in str(raised.value)


def test_measured_rooflines_give_the_same_step(tmp_path: Path) -> None:
    """Times that a roofline has written down replace it without a change, and times that are longer tell."""
    devices = read_hardware(HARDWARE)
    device = next(each for each in devices if each.name == "h20")
    shape = read_shape(model_file("qwen3_32b"))
    roofline = Roofline(shape, 4096)
    rows = [1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 1024]
    attention = {each: roofline.attention(device, each, each) for each in rows}
    times = {
        "device": "h20",
        "context": 4096,
        "ffn": {each: roofline.feed_forward(device, each, 8) for each in rows},
        "ffn_ranks": 8,
        "link": {"bandwidth": device.network.bandwidth, "latency": device.network.latency},
    }
    path = tmp_path / "times.json"
    costs: list[float] = []
    for slower in (1, 10):
        slowed = {each: slower * seconds for each, seconds in attention.items()}
        path.write_text(json.dumps({**times, "attention": slowed}), encoding="utf-8")
        measured = read_measured(str(path), roofline, 4096, devices)
        for colocated, sequences in itertools.product((False, True), (8, 40, 400)):
            placement = Placement(device, device, 8, 8, colocated)
            before, after = (predict(shape, placement, Batching(2, sequences), each) for each in (roofline, measured))
            assert (after.step_seconds == pytest.approx(before.step_seconds, rel=0.03)) == (slower == 1)
        options = PlanOptions(measured=str(path), attention_device="h20", ffn_device="h20", devices=16)
        planned = plan(model_file("qwen3_32b"), HARDWARE, options)
        assert planned.disaggregated is not None
        assert planned.disaggregated.placement.feed_forward_ranks == 8
        costs.append(planned.disaggregated.cost)
    assert costs[1] > 2 * costs[0]


def test_times_of_one_device_leave_others_to_the_roofline(tmp_path: Path) -> None:
    devices = {each.name: each for each in read_hardware(HARDWARE)}
    roofline = Roofline(read_shape(model_file("step3")), 4096)
    times = {"device": "h20", "attention": {1: 5.0}, "ffn": {1: 7.0}, "ffn_ranks": 4}
    measured = read_measured(written(tmp_path, times), roofline, 4096, tuple(devices.values()))
    assert measured.attention(devices["h20"], 1, 1) == 5
    assert measured.feed_forward(devices["h20"], 1, 4) == 7
    assert measured.feed_forward_ranks(devices["h20"]) == 4
    assert measured.network(devices["h20"]) == devices["h20"].network
    h800 = devices["h800"]
    assert measured.attention(h800, 3, 2) == roofline.attention(h800, 3, 2)
    assert measured.feed_forward(h800, 3, 2) == roofline.feed_forward(h800, 3, 2)
    assert measured.feed_forward_ranks(h800) is None


@pytest.mark.parametrize("name", MODELS)
def test_the_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "plan",
        "--model",
        model_file(name),
        "--hardware",
        HARDWARE,
        "--devices",
        "40",
        "--accepted",
        "1:1,4:2.2",
    ]
    assert main([*command, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert set(answer) == {"model", "context", "disaggregated", "colocated", "floors", "verdict"}
    for kind in ("disaggregated", "colocated"):
        found = answer[kind]
        assert 0 < found["seconds_per_token"] <= 0.050
        assert found["tokens_per_second"] == pytest.approx(found["devices"] * found["tokens_per_second_per_device"])
        assert found["rows_per_micro_batch"] == found["tree"] * found["sequences_per_micro_batch"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert answer["verdict"] in shown
    assert answer["model"] in shown
    assert f"{answer['disaggregated']['usd_per_million_tokens']:.3f}" in shown


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--hardware", HARDWARE], "the following arguments are required: --model"),
        (["--model", "/no/such", "--hardware", HARDWARE], "'/no/such' cannot be used"),
        (["--model", model_file("step3"), "--hardware", model_file("step3")], "lacks devices"),
        (
            ["--model", model_file("step3"), "--hardware", HARDWARE, "--ffn-device", "h100"],
            "no device 'h100': name one of",
        ),
        (
            ["--model", model_file("step3"), "--hardware", HARDWARE, "--latency", "0.001"],
            "cannot serve Step-3 with 0.001",
        ),
        (["--model", model_file("step3"), "--hardware", HARDWARE, "--devices", "0"], "--devices must be from 1"),
    ],
)
def test_the_command_refuses_in_one_sentence(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("forerun: ")
    assert said.count("\n") == 1
    assert expected in said
