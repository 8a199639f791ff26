"""The tokenizer of a bundle: `tokenizer.json` by the tokenizers library alone, and its chat template."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forerun.errors import CorruptFileError, PromptError
from forerun.records import restored

if TYPE_CHECKING:
    from forerun.artifacts.bundle import Bundle

TOKENS, TEMPLATE = "tokenizer.json", "chat_template.jinja"
SETTINGS = "settings.json"
"""What a chat template may name besides the messages, such as `bos_token`."""


def save_tokenizer(tokenizer: Any, folder: Path, notes: list[str]) -> tuple[str, ...]:
    """Writes a tokenizer's files to a new folder and returns their names; a note says why there are none."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        notes.append(f"No tokenizer: {type(tokenizer).__name__} has no form that the tokenizers library reads.")
        return ()
    folder.mkdir()
    (folder / TOKENS).write_text(backend.to_str(), encoding="utf-8")
    template = getattr(tokenizer, "chat_template", None)
    if not isinstance(template, str):
        return (TOKENS,)
    (folder / TEMPLATE).write_text(template, encoding="utf-8")
    special = {name: str(each) for name, each in tokenizer.special_tokens_map.items() if isinstance(each, str)}
    (folder / SETTINGS).write_text(json.dumps(special), encoding="utf-8")
    return (TOKENS, TEMPLATE, SETTINGS)


def read_tokenizer(bundle: Bundle, files: Sequence[str]) -> BundleTokenizer | None:
    """Returns the tokenizer of a bundle, None if it has none. Raises `CorruptFileError`."""
    contents = {name.rpartition("/")[2]: bundle.read(name) for name in files}
    if TOKENS not in contents:
        return None
    from tokenizers import Tokenizer

    try:
        tokens = Tokenizer.from_str(contents[TOKENS].decode())
        template = contents[TEMPLATE].decode() if TEMPLATE in contents else None
        settings = restored(Mapping[str, str], json.loads(contents.get(SETTINGS, b"{}")))
    except Exception as error:  # the tokenizers library raises Exception itself
        raise CorruptFileError(
            f"The tokenizer of {bundle.folder} cannot be read ({error}): export the model again."
        ) from error
    return BundleTokenizer(tokens, template, settings)


class BundleTokenizer:
    """The part of transformers' interface that generating needs, without transformers."""

    def __init__(self, tokens: Any, chat_template: str | None, special: Mapping[str, str]) -> None:
        self.tokens, self.chat_template, self.special_tokens_map = tokens, chat_template, dict(special)

    @property
    def backend_tokenizer(self) -> Any:
        """The tokenizer of tokenizers, by transformers' name."""
        return self.tokens

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return list(self.tokens.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, token_ids: Iterable[int] | int, skip_special_tokens: bool = False, **_: Any) -> str:
        ids = [token_ids] if isinstance(token_ids, int) else [int(each) for each in token_ids]
        return self.tokens.decode(ids, skip_special_tokens=skip_special_tokens)

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **_: Any,
    ) -> str:
        """Returns the text of a conversation, in which `tools` may be called.

        Raises `PromptError` without a template, or what one raises.
        """
        if self.chat_template is None:
            raise PromptError("The model has no chat template: encode the text without one.")
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        def refuse(why: str) -> None:
            raise TemplateError(why)

        environment: Any = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
        environment.globals["raise_exception"] = refuse
        names = {"messages": messages, "add_generation_prompt": add_generation_prompt, "tools": tools}
        return environment.from_string(self.chat_template).render(**self.special_tokens_map, **names)
