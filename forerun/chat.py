"""Prompts in a model's chat template, whichever library the tokenizer comes from."""

from __future__ import annotations

from typing import Any

from forerun.errors import PromptError, first_sentence


def encode_chat(tokenizer: Any, prompt: str) -> list[int]:
    """The prompt as a user's turn, ready for the answer; plain text if there is no chat template."""
    if not getattr(tokenizer, "chat_template", None):
        return list(tokenizer.encode(prompt))
    turns = [{"role": "user", "content": prompt}]
    try:
        text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    except Exception as error:  # a template is a program of the model's author
        raise PromptError(
            f"the model's chat template fails on this prompt ({first_sentence(error)}): encode the text without it "
            "(--raw)."
        ) from error
    # The template writes the special tokens itself.
    return list(tokenizer.encode(str(text), add_special_tokens=False))
