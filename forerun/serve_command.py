"""forerun serve: its options, and what it does with them.

Nothing is imported before it is needed, so that bad options are refused at once.
"""

from __future__ import annotations

import ipaddress
import json
import os
from typing import TYPE_CHECKING, Any

from forerun import commands
from forerun.errors import InvalidOptionError

if TYPE_CHECKING:
    import argparse
    import socket

KEY = "FORERUN_API_KEY"
PACKAGES = ("starlette", "uvicorn", "pydantic", "prometheus_client")
LOOPBACK = "127.0.0.1"
MOST_BYTES, MOST_TEXTS, MOST_SECONDS = 2**40, 2**20, 1e9


def add_serve(serve: argparse.ArgumentParser) -> None:
    """Adds the options besides the model and those of compiling."""
    serve.add_argument("--strategy", help="the decoding strategy; see below (default: tree_spec, or the bundle's)")
    serve.add_argument("--host", default=LOOPBACK, help="the address; one that others can reach needs a key")
    serve.add_argument("--port", type=int, default=8000, help="the port; 0 for any free one")
    serve.add_argument("--api-key", metavar="KEY", help=f"what clients must send (default: ${KEY}, or nothing)")
    serve.add_argument("--name", help="the model's name in requests (default: the last part of MODEL)")
    serve.add_argument(
        "--queue", type=int, metavar="N", default=64, help="texts at a time, running and waiting; others get 429"
    )
    serve.add_argument("--choices", type=int, metavar="N", default=16, help="texts of one request, at most")
    serve.add_argument("--max-body", type=int, metavar="N", default=4 * 2**20, help="bytes of a request, at most")
    serve.add_argument(
        "--max-prompt", type=int, metavar="N", help="tokens of a prompt, at most (default: all the model takes)"
    )
    serve.add_argument("--timeout", type=float, metavar="S", default=600.0, help="seconds that a request may take")
    serve.add_argument(
        "--drain", type=float, metavar="S", default=30.0, help="seconds that running texts get after a signal"
    )
    serve.set_defaults(run=run_serve)


def run_serve(arguments: argparse.Namespace) -> int:
    """Serves until a signal. Returns 0 if all that ran was finished, 1 if --drain was too short for it."""
    require_packages()
    commands.check(arguments, takes_bundles=True)
    commands.require_tokenizer(arguments.model)
    limits, key = limits_of(arguments), key_of(arguments)

    from forerun import __version__
    from forerun.server.running import bound, configured, url_of
    from forerun.server.service import Service, fingerprint_of

    listening = bound(arguments.host, require_port(arguments.port))
    try:
        local = is_loopback(listening)
        if not local and key is None:
            raise InvalidOptionError(
                f"--host {arguments.host} can be reached from other machines, so it needs a key: set {KEY}, or give "
                "--api-key."
            )
        model = arguments.compiled(arguments)
        if model.tokenizer is None:
            raise InvalidOptionError("The model has no tokenizer, so it cannot be served: add its tokenizer's files.")
        name = arguments.name or name_of(arguments.model)
        fingerprint = fingerprint_of(model, [__version__, *files_of(arguments.model)])
        service = Service(model, model.tokenizer, name, limits, fingerprint)
        url = url_of(listening)

        def tell() -> None:
            if arguments.json:
                print(json.dumps({"url": url, "model": name}), flush=True)
            else:
                print(f"{name} is served at {url}/v1, with a page at {url}/; Ctrl-C ends it", flush=True)

        server = configured(service, key, local, tell)
        server.run([listening])
        return 1 if server.interrupted else 0
    finally:
        listening.close()


def require_packages() -> None:
    """Raises `InvalidOptionError` if the packages of the extra are not installed."""
    from importlib.util import find_spec

    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise InvalidOptionError(f'forerun serve needs {", ".join(missing)}: run pip install "forerun[serve]".')


def limits_of(arguments: argparse.Namespace) -> Any:
    """Returns the limits that the options give. Raises `InvalidOptionError`."""
    from forerun.runtime.options import require_integer, require_number
    from forerun.server.limits import Limits

    prompt = arguments.max_prompt
    return Limits(
        body=require_integer("--max-body", arguments.max_body, 1, MOST_BYTES),
        prompt=None if prompt is None else require_integer("--max-prompt", prompt, 1),
        choices=require_integer("--choices", arguments.choices, 1, MOST_TEXTS),
        queue=require_integer("--queue", arguments.queue, 1, MOST_TEXTS),
        seconds=require_number("--timeout", arguments.timeout, above=0, most=MOST_SECONDS),
        drain=require_number("--drain", arguments.drain, least=0, most=MOST_SECONDS),
    )


def require_port(port: int) -> int:
    from forerun.runtime.options import require_integer

    return require_integer("--port", port, 0, 65535)


def key_of(arguments: argparse.Namespace) -> str | None:
    """Returns the key of the options or of the environment, if there is one. Raises `InvalidOptionError`."""
    key = arguments.api_key if arguments.api_key is not None else os.environ.get(KEY) or None
    if key is not None and (not key.strip() or not key.isascii() or not key.isprintable() or key != key.strip()):
        raise InvalidOptionError("The key must be printable ASCII without spaces around it: choose another one.")
    return key


def is_loopback(listening: socket.socket) -> bool:
    """Whether only this machine can reach a socket."""
    return ipaddress.ip_address(listening.getsockname()[0].partition("%")[0]).is_loopback


def name_of(model: str) -> str:
    from forerun.runtime.model import source_name

    return source_name(model)


def files_of(model: str) -> list[str]:
    """Returns lines that identify the files of a model; none where they do not say what it is."""
    from pathlib import Path

    from forerun.compile_options import located
    from forerun.identity import identity
    from forerun.storage import BUNDLE, expanded, is_bundle

    if is_bundle(expanded(model)):
        return [(Path(expanded(model)) / BUNDLE).read_text(encoding="utf-8")]
    found = located(model)
    return identity(Path(found)) or [] if isinstance(found, str | Path) else []
