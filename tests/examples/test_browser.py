"""The browser's example, in a browser: its text is that of plain decoding, and it draws the trees."""

import json
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

import forerun
from tests.examples.devtools import Browser, executable
from tests.models import FAMILIES

FOLDER = Path(__file__).parents[2] / "examples" / "browser"
NEW_TOKENS = 40
ROWS = (1, 8, 24)

# Submits the form and returns what the page shows when the text has ended. Its elements are found by their ids.
RUN = """new Promise((done) => {
  form.rows.value = ROWS;
  form.requestSubmit();
  const timer = setInterval(() => {
    if (form.go.textContent !== "Generate") return;
    clearInterval(timer);
    const classes = (tree, tag) => [...tree.querySelectorAll(tag)].map((each) => each.getAttribute("class"));
    done({
      status: document.getElementById("status").textContent,
      tokens: (text.dataset.tokens ?? "").split(",").map(Number),
      text: text.textContent,
      counter: counter.textContent,
      trees: [...trees.querySelectorAll("svg")].map((tree) => ({
        nodes: classes(tree, "g"),
        edges: classes(tree, "path"),
        length: tree.parentElement.querySelector("b").textContent,
        labels: [...tree.querySelectorAll("text")].map((each) => each.textContent),
      })),
      run: [...(runs.lastElementChild?.children ?? [])].map((cell) => cell.textContent),
    });
  }, 20);
})"""


class Handler(SimpleHTTPRequestHandler):
    """The example's folder, and the folder of the bundles at /bundles."""

    def __init__(self, *given: Any, bundles: Path) -> None:
        self.bundles = bundles
        super().__init__(*given, directory=str(FOLDER))

    def translate_path(self, path: str) -> str:
        if path.startswith("/bundles/"):
            return str(self.bundles / path.removeprefix("/bundles/"))
        return super().translate_path(path)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bundles")


@pytest.fixture(scope="module")
def address(bundles: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, bundles=bundles))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture
def browser() -> Iterator[Browser]:
    path = executable()
    if path is None:
        pytest.skip("there is no Chromium; CONTRIBUTING.md names the package")
    if not (FOLDER / "node_modules" / "onnxruntime-web").is_dir():
        pytest.skip("the page's libraries are not installed; run npm install in examples/browser")
    pytest.importorskip("onnxruntime")
    with Browser(path) as browser:
        yield browser


def small_tokenizer() -> PreTrainedTokenizerFast:
    """Byte pairs of a few words, so that any text can be encoded and spaces belong to tokens."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    inner.train_from_iterator(["the sea and the stone and the shore"] * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner)


def exported(source: Any, folder: Path) -> Any:
    model = forerun.compile(source, target="onnx", strategy="autoregressive", max_length=128)
    model.export(folder, format="onnx")
    return model


def shown(browser: Browser, address: str, bundle: str, prompt: str) -> list[dict[str, Any]]:
    """Returns what the page shows at each number of rows."""
    browser.open(f"{address}?bundle={quote(bundle)}&prompt={quote(prompt)}&count={NEW_TOKENS}")
    found = [browser.evaluate(RUN.replace("ROWS", str(rows))) for rows in ROWS]
    assert not browser.problems
    return found


def check_trees(found: dict[str, Any], rows: int) -> None:
    """Each tree has a root, at most as many rows as asked, and first the path to the model's own token."""
    for number, tree in enumerate(found["trees"]):  # the newest first: its path may be cut where the text ends
        counts = Counter(tree["nodes"])
        assert tree["nodes"][0] == "root"
        assert counts["root"] == 1
        assert counts["own"] == 1 or (number == 0 and counts["own"] == 0)
        assert len(tree["nodes"]) - counts["own"] <= rows
        path = ["accepted"] * counts["accepted"] + ["own"] * counts["own"]
        assert tree["nodes"][1 : len(path) + 1] == path
        assert sorted(tree["edges"]) == sorted(tree["nodes"][1:])
        assert tree["length"] == f"+{len(path)}"
    steps = len(found["trees"])
    assert sum(int(tree["length"]) for tree in found["trees"]) == NEW_TOKENS
    assert found["counter"] == f"{NEW_TOKENS} tokens in {steps} steps"
    assert found["run"][:3] == [str(rows), str(NEW_TOKENS), str(steps)]
    assert found["run"][-1] == "same"


def check(found: list[dict[str, Any]], plain: list[int]) -> None:
    for each, rows in zip(found, ROWS, strict=True):
        assert each["status"] == ""
        assert each["tokens"] == plain
        check_trees(each, rows)
    steps = [len(each["trees"]) for each in found]
    assert steps[0] == NEW_TOKENS
    assert steps[1] < NEW_TOKENS
    assert any("rejected" in tree["nodes"] for tree in found[1]["trees"])


def test_a_text(browser: Browser, bundles: Path, address: str, tmp_path: Path) -> None:
    tokenizer = small_tokenizer()
    FAMILIES["opt"](vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = exported(tmp_path, bundles / "text")
    prompt = "the sea and the stone and the <sea> & the"
    plain = model.generate(model.tokenizer.encode(prompt), max_new_tokens=NEW_TOKENS)
    found = shown(browser, address, "bundles/text", prompt)
    check(found, plain.token_ids)
    assert all(each["text"] == prompt + plain.text for each in found)


@pytest.fixture(scope="module")
def without_tokenizer(bundles: Path) -> Any:
    """A model whose cache has fewer heads than its queries, and whose positions are rotary."""
    return exported(FAMILIES["qwen3"](), bundles / "ids")


def test_token_ids(browser: Browser, address: str, without_tokenizer: Any) -> None:
    prompt = [1, 2, 3, 1, 2, 3, 1, 2]
    plain = without_tokenizer.generate(prompt, max_new_tokens=NEW_TOKENS)
    found = shown(browser, address, "bundles/ids", " ".join(map(str, prompt)))
    check(found, plain.token_ids)
    assert all(each["text"] == " ".join(map(str, [*prompt, *plain.token_ids])) for each in found)
    labels = [tree["labels"] for tree in reversed(found[0]["trees"])]  # the last token and the new one
    assert labels == [[str(each) for each in pair] for pair in pairwise([prompt[-1], *plain.token_ids])]


def test_an_end_token(browser: Browser, bundles: Path, address: str, without_tokenizer: Any) -> None:
    prompt = [1, 2, 3, 1, 2, 3, 1, 2]
    tokens = without_tokenizer.generate(prompt, max_new_tokens=NEW_TOKENS).token_ids
    end = tokens[NEW_TOKENS // 2]
    shutil.copytree(bundles / "ids", bundles / "ending")
    manifest = json.loads((bundles / "ending" / "bundle.json").read_text())
    manifest["model"]["eos_token_ids"] = [end]
    (bundles / "ending" / "bundle.json").write_text(json.dumps(manifest))
    for found in shown(browser, address, "bundles/ending", " ".join(map(str, prompt))):
        assert found["tokens"] == tokens[: tokens.index(end) + 1]


@pytest.mark.parametrize(("prompt", "count"), [("1 2", 127), ("none", 8)])
def test_a_length_that_it_refuses(
    browser: Browser, address: str, without_tokenizer: Any, prompt: str, count: int
) -> None:
    browser.open(f"{address}?bundle=bundles/ids&prompt={quote(prompt)}&count={count}")
    assert "1 to 128 tokens" in browser.evaluate(RUN.replace("ROWS", "8"))["status"]


def test_a_folder_without_a_bundle(browser: Browser, address: str) -> None:
    browser.open(f"{address}?bundle=bundles/none")
    assert browser.evaluate(RUN.replace("ROWS", "8"))["status"].startswith("There is no bundle at")


def test_the_loop_stays_small() -> None:
    """The README promises a loop that can be read in one sitting."""
    assert sum(len(each.read_text().splitlines()) for each in FOLDER.glob("*.js")) <= 200
