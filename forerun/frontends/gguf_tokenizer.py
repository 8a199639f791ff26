"""The tokenizer that a GGUF file's metadata describes, built by transformers."""

from typing import Any

import numpy as np
from tokenizers import Regex, Tokenizer
from tokenizers.pre_tokenizers import ByteLevel, PreTokenizer, Sequence, Split
from transformers import LlamaTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.integrations.gguf.gguf_tokenizer_mapping import (
    GGUF_PRE_TOKENIZER_SPLITS,
    GGUF_TOKENIZER_TYPES,
    convert_gguf_tokenizer,
)

from forerun.errors import CorruptFileError, UnsupportedOperationError, first_sentence
from forerun.frontends.gguf_header import GgufHeader, Strings
from forerun.frontends.quiet import quiet_libraries

GPT2 = frozenset(
    {
        *(
            "a.x-4.0",
            "gigachat",
            "gpt-2",
            "granite-docling",
            "jais",
            "jina-de",
            "jina-es",
            "jina-v1-en",
            "jina-v2-code",
        ),
        *("jina-v2-de", "jina-v2-es", "mellum", "mpt", "olmo", "phi-2", "roberta-bpe", "trillion"),
    }
)
DIGITS = frozenset({"codeshell", "command-r", "exaone", "minerva-7b", "refact", "smollm", "starcoder"})
AS_QWEN2 = frozenset({"hunyuan", "solar-open", "stablelm2"})
AS_BLOOM = frozenset({"bloom", "gpt3-finnish", "poro-chat"})
"""Values of `tokenizer.ggml.pre` by how llama.cpp cuts a text before merges (`llama-vocab.cpp`): as GPT-2 does, each
digit alone and then as GPT-2 does, and as Qwen2 and Bloom do. Others are in transformers' table."""
WHOLE_FIRST = frozenset(
    {"falcon-h1", "falcon3", "lfm2", "llama-bpe", "llama-v3", "llama3", "midm-2.0", "pixtral", "tekken"}
)
"""Those whose words are tokens without merges where the vocabulary has them, and whose texts begin with the BOS token
unless the file says otherwise."""
UNTOLD = (None, "default")  # in files older than the key; transformers' builder cuts as GPT-2 does

SPECIAL_TOKENS = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}
ABSENT = (None, "none", "no_vocab")  # tokenizer.ggml.model in a file without a vocabulary
FLAGS = ("add_bos_token", "add_eos_token", "add_space_prefix")


def read_tokenizer(header: GgufHeader) -> PreTrainedTokenizerBase | None:
    """The tokenizer, or None if the file has none.

    Raises `CorruptFileError` if the contents are not a tokenizer, and `UnsupportedOperationError` for a kind of
    tokenizer that transformers does not build from GGUF files.
    """
    metadata = _Metadata(header)
    kind = metadata.value("model")
    if not isinstance(kind, str | None):
        raise metadata.damaged("model", "is not a string")
    if kind in ABSENT and not any(name in metadata for name in ("tokens", "merges", "scores")):
        return None
    if kind not in GGUF_TOKENIZER_TYPES:
        raise UnsupportedOperationError(
            f"{header.path} holds a tokenizer of the kind {kind!r}, but transformers builds only "
            f"{', '.join(GGUF_TOKENIZER_TYPES)} from GGUF files: give the directory of the original model."
        )
    if np.size(metadata.value("suppress_tokens") if "suppress_tokens" in metadata else ()):
        raise UnsupportedOperationError(
            f"{header.path} suppresses tokens (tokenizer.ggml.suppress_tokens), which forerun does not, so its text "
            f"would differ: give the directory of the original model."
        )
    fields = _fields(metadata, kind)
    options = _options(metadata, kind, fields["tokens"])
    cut = _cut(metadata) if kind == "gpt2" else None
    try:
        with quiet_libraries():
            backend, _ = convert_gguf_tokenizer(str(header.architecture), fields)
            if kind == "gpt2" and cut is not None:
                backend.pre_tokenizer = cut
            if kind == "gpt2" and metadata.value("pre") in WHOLE_FIRST:
                backend.model.ignore_merges = True
            if kind == "llama" and fields["add_prefix_space"] is False:
                _without_prefix(backend)
            return PreTrainedTokenizerFast(tokenizer_object=backend, **options)
    except Exception as error:
        raise CorruptFileError(
            f"{header.path} holds a damaged tokenizer ({first_sentence(error)}): download the file again."
        ) from error


class _Metadata:
    """Keys of `tokenizer.ggml`, each of the type that it must have."""

    def __init__(self, header: GgufHeader) -> None:
        self.header = header

    def __contains__(self, name: str) -> bool:
        return f"tokenizer.ggml.{name}" in self.header.metadata

    def value(self, name: str) -> Any:
        return self.header.metadata.get(f"tokenizer.ggml.{name}")

    def strings(self, name: str) -> list[str]:
        stored = self.value(name)
        if not isinstance(stored, Strings):
            raise self.damaged(name, "is not a list of strings")
        try:
            return stored.decode()
        except UnicodeDecodeError as error:
            raise self.damaged(name, "holds a string that is not UTF-8") from error

    def numbers(self, name: str, kinds: str, length: int) -> list[Any]:
        """A list of one number per token, of numpy's `kinds`."""
        stored = self.value(name)
        if not isinstance(stored, np.ndarray) or stored.dtype.kind not in kinds or len(stored) != length:
            raise self.damaged(name, f"is not a list of {length} numbers, one per token")
        if not np.isfinite(stored).all():
            raise self.damaged(name, "holds a number that is not finite")
        return stored.tolist()

    def token(self, name: str, tokens: list[str]) -> str | None:
        stored = self.value(name)
        if stored is None:
            return None
        if type(stored) is not int or not 0 <= stored < len(tokens):
            raise self.damaged(name, f"is {stored!r}, but there are {len(tokens)} tokens")
        return tokens[stored]

    def flag(self, name: str) -> bool | None:
        stored = self.value(name)
        if stored is not None and not isinstance(stored, bool):
            raise self.damaged(name, "is neither true nor false")
        return stored

    def damaged(self, name: str, fault: str) -> CorruptFileError:
        return CorruptFileError(f"{self.header.path}: tokenizer.ggml.{name} {fault}; download the file again.")


def _fields(metadata: _Metadata, kind: str) -> dict[str, Any]:
    """The arguments of transformers' builders, by name."""
    tokens = metadata.strings("tokens")
    embedding = next((entry for entry in metadata.header.tensors if entry.name == "token_embd.weight"), None)
    if not tokens or (embedding is not None and len(tokens) > embedding.shape[0]):
        raise metadata.damaged("tokens", f"lists {len(tokens)} tokens, but the model has another number of tokens")
    pre = metadata.value("pre")
    if not isinstance(pre, str | None):
        raise metadata.damaged("pre", "is not a string")
    fields: dict[str, Any] = {"tokenizer_type": kind, "tokens": tokens, "pre_tokenizer_type": pre}
    if "merges" in metadata:
        fields["merges"] = _merges(metadata)
    elif kind == "gpt2":
        raise metadata.damaged("merges", "is missing")
    if "scores" in metadata or "merges" not in metadata:
        fields["scores"] = metadata.numbers("scores", "f", len(tokens))
    if "token_type" in metadata:
        fields["token_type"] = metadata.numbers("token_type", "iu", len(tokens))
    for name in ("bos_token_id", "eos_token_id", "unknown_token_id", "padding_token_id"):
        fields[name.replace("unknown", "unk").replace("padding", "pad")] = metadata.value(name)
    fields["add_prefix_space"] = metadata.flag("add_space_prefix")
    return fields


def _merges(metadata: _Metadata) -> list[str]:
    merges = metadata.strings("merges")
    for merge in merges:
        if len(merge.split(" ")) != 2 or not all(merge.split(" ")):
            raise metadata.damaged("merges", f"holds {merge!r}, which is not a pair")
    return merges


def _cut(metadata: _Metadata) -> PreTokenizer | None:
    """The split of a text before merges, if transformers' builder does not know it."""
    name = metadata.value("pre")
    if name in UNTOLD or name in GGUF_PRE_TOKENIZER_SPLITS or name in GPT2:
        return None
    as_gpt2 = ByteLevel(add_prefix_space=False)
    if name in DIGITS:
        return Sequence([_apart(r"\p{N}"), as_gpt2])
    if name == "falcon":
        return Sequence([_apart(r"[\p{P}\$\+<=>\^~\|`]+"), as_gpt2, _apart("[0-9][0-9][0-9]")])
    whole = ByteLevel(add_prefix_space=False, use_regex=False)
    if name in AS_QWEN2:
        return Sequence([_apart(GGUF_PRE_TOKENIZER_SPLITS["qwen2"]), whole])
    if name in AS_BLOOM:
        return Sequence([_apart(r" ?[^(\s|.,!?…。，、।۔،)]+"), whole])
    raise UnsupportedOperationError(
        f"{metadata.header.path} splits text by tokenizer.ggml.pre = {name!r}, which forerun does not know, so "
        f"its tokens would differ: give the directory of the original model."
    )


def _apart(pattern: str) -> PreTokenizer:
    return Split(Regex(pattern), behavior="isolated")


def _without_prefix(backend: Tokenizer) -> None:
    """Let a sentencepiece text begin without a space of its own."""
    plain = LlamaTokenizer(add_prefix_space=False).backend_tokenizer
    backend.normalizer, backend.pre_tokenizer, backend.decoder = plain.normalizer, plain.pre_tokenizer, plain.decoder


def _options(metadata: _Metadata, kind: str, tokens: list[str]) -> dict[str, Any]:
    """Special tokens, those that are added on encoding, and the chat template."""
    options: dict[str, Any] = {option: metadata.token(name, tokens) for option, name in SPECIAL_TOKENS.items()}
    for name in FLAGS[:2]:
        stored = metadata.flag(name)
        if stored is not None:
            options[name] = stored
    if kind == "llama" or metadata.value("pre") in WHOLE_FIRST:
        options.setdefault("add_bos_token", True)  # llama.cpp's default
    template = metadata.header.metadata.get("tokenizer.chat_template")
    if template is not None and not isinstance(template, str):
        raise CorruptFileError(
            f"{metadata.header.path}: tokenizer.chat_template is not a string; download the file again."
        )
    options["chat_template"] = template
    return options
