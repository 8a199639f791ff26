"""The page of a report, in a browser: nothing fails, nothing is fetched, and everything can be reached by keyboard."""

import json
from pathlib import Path
from typing import Any

import pytest

from forerun.cli import main
from tests.report.conftest import Written

AXE = Path(__file__).with_name("axe.min.js")
LARGEST = 3_000_000
SECTIONS = ("pipeline", "step", "cost", "replay")
RULES = "{runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'best-practice']}"


def violations(page: Any) -> list[str]:
    """What axe finds in the whole page, each with the elements concerned."""
    page.evaluate(
        """async () => {
          document.documentElement.style.scrollBehavior = "auto";
          for (let y = 0; y < document.body.scrollHeight; y += 600) {
            scrollTo(0, y);
            await new Promise((done) => setTimeout(done, 60));
          }
          scrollTo(0, 0);
        }"""
    )
    page.add_script_tag(path=str(AXE))
    found = page.evaluate(f"axe.run(document, {RULES})")["violations"]
    nodes = [(each["id"], node) for each in found for node in each["nodes"]]
    return [f"{rule}: {node['html'][:160]} {node['failureSummary'][-160:]}" for rule, node in nodes]


def test_it_is_one_small_file(written: Written) -> None:
    text = written.page.read_text(encoding="utf-8")
    assert written.page.stat().st_size < LARGEST
    assert "src=" not in text.split("<script>", 1)[0]
    assert "@import" not in text.split("<script", 1)[0]


def test_all_sections_are_drawn(opened: Any, written: Written) -> None:
    page = opened(written.page).page
    assert page.eval_on_selector_all("main section", "found => found.map(each => each.id)") == list(SECTIONS)
    data = json.loads(written.data.read_text(encoding="utf-8"))
    assert page.locator("#pipeline [role=option]").count() == len(data["passes"])
    page.locator("#cost").scroll_into_view_if_needed()
    page.wait_for_selector("#cost figure svg")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_accessible(opened: Any, written: Written, scheme: str) -> None:
    page = opened(written.page, scheme).page
    assert violations(page) == []
    page.get_by_role("button", name="theme").click()
    assert violations(page) == []


def test_the_pipeline_by_keyboard(opened: Any, written: Written) -> None:
    page = opened(written.page).page
    passes = page.get_by_role("listbox", name="Passes")
    passes.focus()
    page.keyboard.press("Home")
    detail = page.locator("#pass")
    assert detail.locator("h3").inner_text() == "import"
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert detail.locator("h3").inner_text() == "canonicalize"
    page.keyboard.press("End")
    assert detail.locator("h3").inner_text() == "plan-memory"
    text = detail.locator("pre").inner_text()
    assert "spec.kernel" in text
    assert "modeling_llama.py" in text  # the model's own code
    assert "layers 1..3 as layer 0" in text
    assert detail.locator("pre .op").count() > 20


def test_kernels_and_rows(opened: Any, written: Written) -> None:
    page = opened(written.page).page
    assert page.locator("#step .stacked .title b").first.inner_text() == "layers 0 to 3, alike"
    kernel = page.locator("#step button.kernel", has_text="gate_up")
    kernel.focus()
    page.keyboard.press("Enter")
    assert kernel.get_attribute("aria-pressed") == "true"
    detail = page.locator("#kernel")
    assert detail.locator("h3").first.inner_text() == "layers.*.mlp.gate_up"
    assert detail.locator("table").first.locator("tbody tr").count() == 3
    before = kernel.locator(".time").inner_text()
    page.get_by_role("radio", name="32 rows").check()
    assert kernel.locator(".time").inner_text() != before
    tabs = detail.get_by_role("tab")
    tabs.first.focus()
    page.keyboard.press("ArrowRight")
    assert "spec.linear" in detail.locator("pre").inner_text()
    page.keyboard.press("ArrowRight")
    assert "products: row" in detail.locator("pre").first.inner_text()
    page.keyboard.press("End")
    assert "def " in detail.locator("pre").inner_text()


def test_a_long_source_is_cut_with_a_note(opened: Any, written: Written) -> None:
    data = json.loads(written.data.read_text(encoding="utf-8"))
    longest = max(
        (each for one in data["step"]["structures"] for each in one["sources"]), key=lambda each: each["size"]
    )
    assert len(longest["text"]) < longest["size"]
    page = opened(written.page).page
    for kernel in page.locator("#step button.kernel").all():
        kernel.click()
        tab = page.locator("#kernel").get_by_role("tab", name=longest["name"])
        if tab.count():
            tab.click()
            break
    assert "forerun dump" in page.locator("#kernel .cut").inner_text()


def test_the_replay_runs_to_the_end(opened: Any, written: Written) -> None:
    page = opened(written.page).page
    replay = json.loads(written.data.read_text(encoding="utf-8"))["replay"]
    page.locator("#player").scroll_into_view_if_needed()
    page.wait_for_selector("#player svg")
    page.get_by_role("radio", name="4×").check()
    page.get_by_role("button", name="Play").click()
    page.get_by_role("button", name="Pause").wait_for()
    last = f"Step {len(replay['steps'])} of {len(replay['steps'])}:"
    page.wait_for_function("last => document.querySelector('.told').textContent.startsWith(last)", arg=last)
    page.get_by_role("button", name="Play").wait_for()
    said = page.locator(".said > div").last
    assert said.inner_text().split() == replay["text"].split()


def test_the_replay_by_keyboard(opened: Any, written: Written) -> None:
    page = opened(written.page).page
    replay = json.loads(written.data.read_text(encoding="utf-8"))["replay"]
    at = next(number for number, step in enumerate(replay["steps"]) if len(step["path"]) > 1)
    page.locator("#player").scroll_into_view_if_needed()
    page.wait_for_selector("#player svg")
    tree = page.get_by_role("region", name="The tree of this step")
    tree.focus()
    page.keyboard.press("Home")
    for _ in range(at):
        page.keyboard.press("ArrowRight")
    assert page.locator(".told").inner_text().startswith(f"Step {at + 1} of")
    step = replay["steps"][at]
    assert tree.locator("g.accepted").count() == len(step["path"])
    assert tree.locator("g.rejected").count() == len(step["tokens"]) - len(step["path"])
    assert tree.locator("g.bonus").count() == 1
    page.keyboard.press("Space")
    page.get_by_role("button", name="Pause").wait_for()
    page.keyboard.press("Space")
    page.get_by_role("button", name="Play").wait_for()
    page.keyboard.press("End")
    assert page.locator(".told").inner_text().startswith(f"Step {len(replay['steps'])} of")


def test_the_theme_follows_the_system_and_the_button(opened: Any, written: Written) -> None:
    colour = "getComputedStyle(document.body).backgroundColor"
    light, dark = opened(written.page, "light").page, opened(written.page, "dark").page
    first, second = light.evaluate(colour), dark.evaluate(colour)
    assert first != second
    light.get_by_role("button", name="Dark theme").click()
    assert light.evaluate(colour) == second


def test_a_comparison(opened: Any, written: Written, tmp_path: Path) -> None:
    other = json.loads(written.data.read_text(encoding="utf-8"))
    for kernel in other["step"]["kernels"]:
        kernel["seconds"] = [2 * each for each in kernel["seconds"]]
    other["about"]["dtype"] = "bfloat16"
    (tmp_path / "slower.json").write_text(json.dumps(other), encoding="utf-8")
    out = tmp_path / "compared.html"
    assert main(["report", "--compare", str(written.data), str(tmp_path / "slower.json"), "-o", str(out)]) == 0
    found = opened(out)
    page = found.page
    assert page.locator("h1").inner_text() == "report → slower"
    assert "Both generated the same tokens." in page.locator(".hero p").inner_text()
    changes = page.locator("#kernels tbody tr td:last-child").all_inner_texts()
    assert {each for each in changes if each} == {"+100%"}
    assert page.locator("#kernels .worse").count() == len([each for each in changes if each])
    assert violations(page) == []


def test_without_running(opened: Any, written: Written, tmp_path: Path) -> None:
    out = tmp_path / "still.html"
    assert main(["report", str(written.model), "--no-run", "-o", str(out), "--max-length", "64", "--quiet"]) == 0
    page = opened(out).page
    assert page.eval_on_selector_all("main section", "all => all.map(each => each.id)") == ["pipeline", "step", "cost"]
    assert "Not run" in page.locator(".notes").inner_text()
    assert violations(page) == []
