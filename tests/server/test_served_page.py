"""The page of a server: it loads nothing from elsewhere, and shows the trees of an answer."""

import re
from typing import Any

import httpx

from forerun.server.page import served_page
from tests.report.test_page import AXE, RULES
from tests.server.served import NAME, Served


def test_it_loads_nothing():
    page, policy = served_page("<b>&")
    markup = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r"\b(src|href)=(?!\"(data:,|#main)\")", markup)
    assert "@import" not in markup
    assert "url(" not in markup
    assert "https://" not in markup
    assert "http://" not in markup
    assert "<b>" not in markup
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy
    assert policy.count("'sha256-") == 2
    assert "unsafe-inline" not in policy.partition("script-src")[2].partition(";")[0]


def test_its_headers(served: Served):
    answer = httpx.get(served.url)
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["content-security-policy"] == served_page(NAME)[1]
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_conversation(served: Served, chromium: Any):
    page = chromium.new_page(viewport={"width": 1280, "height": 900})
    requests: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(served.url)
    page.get_by_label("temperature").fill("1")
    page.get_by_label("tokens").fill("40")
    page.get_by_label("seed").fill("5")
    page.get_by_label("Your message").fill("Name three <b>islands</b>.")
    page.keyboard.press("Enter")
    page.wait_for_selector("#replay")
    expected = served.post(
        "/v1/chat/completions",
        messages=[{"role": "user", "content": "Name three <b>islands</b>."}],
        temperature=1,
        max_tokens=40,
        seed=5,
    ).json()["choices"][0]["message"]["content"]
    assert page.locator(".turn.user").text_content() == "Name three <b>islands</b>."
    assert page.locator(".turn.assistant").text_content() == expected
    assert "Seed 5" in page.locator(".ask").inner_text()
    assert page.locator("#replay .tree svg").count() == 1
    command = page.locator("#same pre").inner_text()
    assert '"seed":5' in command
    assert served.url in command
    page.evaluate(AXE.read_text(encoding="utf-8"))  # not as a script of the page, which its policy refuses
    found = page.evaluate(f"axe.run(document, {RULES})")["violations"]
    assert [(each["id"], node["html"][:200]) for each in found for node in each["nodes"]] == []
    page.get_by_label("Your message").fill("And now?")
    page.get_by_label("temperature").fill("9")
    page.keyboard.press("Tab")
    page.get_by_role("button", name="Send").click()
    page.wait_for_selector(".failed")
    assert "temperature" in page.locator(".failed").inner_text()
    assert page.get_by_label("Your message").input_value() == "And now?", "it can be sent again"
    assert page.locator(".turn").count() == 2
    assert errors == ["Failed to load resource: the server responded with a status of 400 (Bad Request)"]
    assert {each.split("/")[2] for each in requests if not each.startswith("data:")} == {served.url.split("/")[2]}
    page.close()
