"""A headless Chromium, driven by the DevTools protocol over a pair of pipes: no port, and no library."""

import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from typing import Any, Self

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless=new",
    "--no-sandbox",  # containers have none, and the pages are the project's own
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--remote-debugging-pipe",  # commands are read from file 3, answers written to file 4
)
PROBLEMS = {"Runtime.exceptionThrown", "Log.entryAdded"}


def executable() -> str | None:
    """Returns the path of a Chromium or a Chrome, None if this machine has none."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Browser:
    """A browser with one page. `problems` is what its console reported."""

    def __init__(self, path: str, seconds: float = 240) -> None:
        self.deadline = time.monotonic() + seconds
        self.problems: list[Any] = []
        self._session: dict[str, str] = {}
        self._number, self._received = 0, b""
        self._profile = tempfile.TemporaryDirectory(prefix="forerun-browser-", ignore_cleanup_errors=True)
        commands, self._commands = os.pipe()
        self._answers, answers = os.pipe()
        given = [fcntl.fcntl(each, fcntl.F_DUPFD, 5) for each in (commands, answers)]  # not 3 or 4 themselves
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{given[0]} 4>&{given[1]}', "bash",
             path, *FLAGS, f"--user-data-dir={self._profile.name}", "about:blank"],
            pass_fds=given,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        for each in (commands, answers, *given):
            os.close(each)

    def __enter__(self) -> Self:
        pages = (each for each in self.call("Target.getTargets")["targetInfos"] if each["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=next(pages)["targetId"], flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._commands)
        os.close(self._answers)
        self._profile.cleanup()

    def open(self, address: str) -> None:
        """Opens a page, and waits until its scripts have run."""
        self.call("Page.navigate", url=address)
        loaded = "document.readyState === 'complete' ? done() : addEventListener('load', () => done())"
        self.evaluate(f"new Promise((done) => {loaded})")

    def evaluate(self, expression: str) -> Any:
        """Returns the value of a JavaScript expression, or of its promise, as JSON has it."""
        found = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Runs a command of the protocol."""
        self._number += 1
        command = {"id": self._number, "method": method, "params": parameters, **self._session}
        os.write(self._commands, json.dumps(command).encode() + b"\0")
        while True:
            message = self._message()
            if message.get("id") == self._number:
                assert "error" not in message, message["error"]
                return message["result"]
            if message.get("method") in PROBLEMS:
                self.problems.append(message["params"])

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._received:
            ready, _, _ = select.select([self._answers], [], [], max(0.0, self.deadline - time.monotonic()))
            part = os.read(self._answers, 1 << 16) if ready else b""
            assert part, f"the browser {'has ended' if ready else 'does not answer'}; it reported {self.problems}"
            self._received += part
        message, _, self._received = self._received.partition(b"\0")
        return json.loads(message)
