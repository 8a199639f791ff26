"""Messages about the keywords of Python's interface, in terms of the command line's options."""

import re
from collections.abc import Iterable

ALONE = ("cases", "seed", "temperature")
"""Options of one word: elsewhere than at the beginning of a message, the words may mean something else."""


def with_options(text: str, names: Iterable[str]) -> str:
    """Returns a message in which options stand for the keywords `names`: `--top-k` for `top_k`, `--top-k 3` for
    `top_k=3`, and `no --do-sample` for `do_sample=False`.

    Parts of paths and of quoted names stay as they are.
    """
    text = re.sub(r"\b\w+=\w+ \((--[a-z-]+)\)", r"\1", text)  # the message gives both
    keywords = "|".join(re.escape(each) for each in sorted(names, key=len, reverse=True) if "_" in each)
    if keywords:
        text = re.sub(rf"(?<![\w/.'\"-])({keywords})(?:=(\w+))?(?![\w/'\"-]|\.\w)", _option, text)
    return re.sub(rf"^({'|'.join(ALONE)})(?= (?:and|must|needs?) )", r"--\1", text)


def _option(found: re.Match[str]) -> str:
    option = f"--{found[1].replace('_', '-')}"
    match found[2]:
        case None | "True":
            return option
        case "False" | "None":
            return f"no {option}"
        case value:
            return f"{option} {value}"
