"""What a server takes at most."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """The limits of a server, each an option of `forerun serve`.

    body        bytes of a request's body
    prompt      tokens of a prompt; None for as many as the model takes
    choices     texts of one request: its prompts times `n`
    queue       texts at a time, running and waiting; beyond it requests get 429
    seconds     from a request's first byte to its answer's last
    drain       seconds after SIGTERM for which running requests may go on
    """

    body: int = 4 * 2**20
    prompt: int | None = None
    choices: int = 16
    queue: int = 64
    seconds: float = 600.0
    drain: float = 30.0
