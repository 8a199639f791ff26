"""Hooks that contrast the target with a companion: another prompt, another model, or an inner exit.

Their sums are in float64. What hooks before them exclude stays excluded.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forerun.errors import InvalidOptionError
from forerun.runtime.executable import Executable, Float32
from forerun.runtime.hooks.base import Hook, Place
from forerun.runtime.hooks.companions import Companion, Model, Reached, companion_of
from forerun.runtime.options import require_integer, require_number, require_room
from forerun.runtime.prompt import prompt_tokens
from forerun.runtime.prompts import prompts_of
from forerun.runtime.sampling import log_probabilities
from forerun.runtime.tree import Tree

Float64 = NDArray[np.float64]
LEAST = -1e30
"""Stands for a companion's logit of -inf, so that differences are numbers."""


class Contrast(Hook):
    """A hook with a companion; a subclass has the formula, and may have the companion read another prompt."""

    def __init__(self, companion: Companion) -> None:
        self.companion = companion

    def contrast(self, target: Float64, companion: Float64) -> Float64:
        """Returns the scores [V] from the logits [V] of the target and those [exits, V] of the companion."""
        raise NotImplementedError

    def prompt(self, prompt: Sequence[int]) -> Sequence[int]:
        """Returns the prompt that the companion reads beside this one."""
        return prompt

    def begin(self, prompt: Sequence[int]) -> Reached:
        return self.companion.begin(self.prompt(prompt), type(self).__name__)

    def advance(self, state: Reached, token: int) -> Reached:
        return state.after(token)

    def prepare(self, state: Reached, tree: Tree) -> None:
        self.companion.prepare(state, tree)

    def evaluate(self) -> None:
        self.companion.evaluate()

    def scores(self, state: Reached, scores: Float32, place: Place) -> Float32:
        executable = self.companion.executable
        if len(scores) != executable.vocabulary:
            raise InvalidOptionError(
                f"the companion of {type(self).__name__} has a vocabulary of {executable.vocabulary}, but the target "
                f"one of {len(scores)}: give a model with the target's vocabulary"
            )
        require_room(state.length, place.left, executable.max_length)
        logits = self.companion.logits(state).astype(np.float64)
        if np.isnan(logits).any():
            raise InvalidOptionError(
                f"the companion of {type(self).__name__} has NaN logits at position {state.length - 1} of its text: "
                "its weights are damaged or its arithmetic overflows; compile it with another dtype"
            )
        found = self.contrast(scores.astype(np.float64), np.maximum(logits, LEAST))
        return np.where(scores == -np.inf, -np.inf, found).astype(np.float32)

    def end(self, state: Reached) -> None:
        self.companion.end(state)


class Guidance(Contrast):
    """Classifier-free guidance: scale * (log p - log q) + log q, where q is the model's after another prompt.

    scale       how much the prompt counts; 1 changes nothing, more strengthens it
    negative    the other prompt, a text or token ids; by default the prompt's last token

    After Sanchez et al., "Stay on topic with Classifier-Free Guidance" (arXiv 2306.17806), as transformers'
    `UnbatchedClassifierFreeGuidanceLogitsProcessor` computes it.
    """

    def __init__(self, model: Model, scale: float, negative: Any = None) -> None:
        super().__init__(_companion("Guidance", model))
        self.scale = _finite("the scale of Guidance", scale)
        self.negative = None if negative is None else _tokens("negative", model, negative)

    def prompt(self, prompt: Sequence[int]) -> Sequence[int]:
        return prompt[-1:] if self.negative is None else self.negative

    def contrast(self, target: Float64, companion: Float64) -> Float64:
        given, other = log_probabilities(target), log_probabilities(companion[0])
        with np.errstate(invalid="ignore"):  # 0 * -inf, of a token that is excluded anyway
            return self.scale * (given - other) + other


class ContextAware(Contrast):
    """Context-aware decoding: (1 + alpha) * logits with the context - alpha * logits without it.

    without     the prompt without its context: a text, token ids, or a function from the prompt's ids to them
    alpha       how much the context counts beyond what it says by itself

    After Shi et al., "Trusting Your Evidence: Hallucinate Less with Context-aware Decoding" (arXiv 2305.14739).
    """

    def __init__(
        self, model: Model, without: str | Sequence[int] | Callable[[Sequence[int]], Sequence[int]], alpha: float = 0.5
    ) -> None:
        super().__init__(_companion("ContextAware", model))
        self.alpha = require_number("the alpha of ContextAware", alpha, least=0, below=np.inf)
        self.without = without if callable(without) else _tokens("without", model, without)

    def prompt(self, prompt: Sequence[int]) -> Sequence[int]:
        if not callable(self.without):
            return self.without
        return prompt_tokens(self.without(prompt), self.companion.executable.vocabulary)

    def contrast(self, target: Float64, companion: Float64) -> Float64:
        return (1 + self.alpha) * target - self.alpha * companion[0]


class Contrastive(Contrast):
    """Contrastive decoding: log p of the target - log q of a weaker model, among the target's plausible tokens.

    amateur     the weaker model, compiled, with the target's vocabulary
    alpha       tokens below this share of the likeliest one's probability are implausible
    beta        if given, (1 + beta) * log p - beta * log q instead
    temperature     of the amateur

    After Li et al., "Contrastive Decoding: Open-ended Text Generation as Optimization" (arXiv 2210.15097); `beta` is
    that of O'Brien and Lewis, "Contrastive Decoding Improves Reasoning in Large Language Models" (arXiv 2309.09117).
    """

    def __init__(self, amateur: Model, alpha: float = 0.1, beta: float | None = None, temperature: float = 1.0) -> None:
        super().__init__(_companion("Contrastive", amateur))
        self.alpha = require_number("the alpha of Contrastive", alpha, above=0, most=1)
        self.beta = None if beta is None else require_number("the beta of Contrastive", beta, least=0, below=np.inf)
        self.temperature = require_number("the temperature of Contrastive", temperature, above=0, below=np.inf)

    def contrast(self, target: Float64, companion: Float64) -> Float64:
        expert, amateur = log_probabilities(target), log_probabilities(companion[0] / self.temperature)
        found = expert - amateur if self.beta is None else (1 + self.beta) * expert - self.beta * amateur
        return np.where(plausible(expert, self.alpha), found, -np.inf)


class Dola(Contrast):
    """DoLa: log p - log q, where q is the model's after the layer that differs most from its last.

    layers          the candidates: numbers of layers (0: the embeddings), or "low" or "high", every other layer of the
                    lower or the upper half, of more than 40 layers of the first or the last 20
    relative_top    tokens below this share of the likeliest one's probability are excluded

    After Chuang et al., "DoLa: Decoding by Contrasting Layers Improves Factuality in Large Language Models" (arXiv
    2309.03883). The difference is the Jensen-Shannon divergence as the authors' code and transformers compute it, with
    the mean of the two distributions first in both divergences. An inner layer's logits are those of the final norm and
    the head, where that code leaves the norm out. "low" begins at layer 2, as there if the embeddings are the head.
    """

    def __init__(self, model: Model, layers: str | Sequence[int] = "low", relative_top: float = 0.1) -> None:
        self.relative_top = require_number("the relative_top of Dola", relative_top, above=0, most=1)
        executable = _executable("Dola", model)
        self.layers = _candidates(layers, len(_ends(executable)) - 1)
        companion = companion_of(model, tuple(_ends(executable)[layer] for layer in self.layers))
        try:
            companion.check()
        except InvalidOptionError as error:
            raise InvalidOptionError(
                "this model cannot be left after an inner layer: compile it for the CPU or a GPU (target='cpu' or "
                "'cuda')"
            ) from error
        super().__init__(companion)

    def contrast(self, target: Float64, companion: Float64) -> Float64:
        final, exits = log_probabilities(target), np.stack([log_probabilities(each) for each in companion])
        premature = exits[divergences(final, exits).argmax()]
        return np.where(plausible(final, self.relative_top), final - premature, -np.inf)


def plausible(logarithms: Float64, share: float) -> NDArray[np.bool_]:
    """Returns which tokens [V] have at least this share of the likeliest one's probability."""
    return logarithms >= logarithms.max() + np.log(share)


def divergences(final: Float64, exits: Float64) -> Float64:
    """Returns how much each of the log-probabilities [exits, V] differs from the final ones [V] (`Dola`)."""
    known = final > -np.inf
    final, exits = final[known], exits[:, known]
    mean = 0.5 * (np.exp(final) + np.exp(exits))
    logarithm = np.log(np.maximum(mean, np.finfo(np.float64).tiny))
    return 0.5 * ((mean * (logarithm - final)).sum(-1) + (mean * (logarithm - exits)).sum(-1))


def _executable(hook: str, model: Any) -> Executable:
    engine = getattr(model, "engine", None)
    if engine is None:
        raise InvalidOptionError(
            f"{hook} needs a compiled model, not {type(model).__name__}: give what forerun.compile returns"
        )
    return engine.executable


def _companion(hook: str, model: Model) -> Companion:
    _executable(hook, model)
    return companion_of(model)


def _finite(name: str, value: Any) -> float:
    return require_number(name, value, above=-np.inf, below=np.inf)


def _tokens(name: str, model: Model, given: Any) -> list[int]:
    """Returns the token ids of a companion's prompt. Raises `InvalidOptionError` and `PromptError`."""
    found, several = prompts_of(given, {}, getattr(model.tokenizer, "encode", None))
    if several and len(found) != 1:
        raise InvalidOptionError(f"{name} must be one prompt, not {len(found)}: give a hook for each")
    return prompt_tokens(found[0][0], model.engine.executable.vocabulary)


def _ends(executable: Executable) -> list[int]:
    """Returns the number of branches before each layer and after the last. Raises `InvalidOptionError`."""
    layers = [each.layer for each in executable.branches]
    if not layers:
        raise InvalidOptionError(
            "this model has no residual stream, so Dola finds no inner exits in it: contrast it with a smaller model "
            "(Contrastive)"
        )
    return [0, *(at for at in range(1, len(layers)) if layers[at] != layers[at - 1]), len(layers)]


def _candidates(layers: Any, count: int) -> list[int]:
    """Returns the candidate layers, ascending, of a model of `count` layers. Raises `InvalidOptionError`."""
    wrong = InvalidOptionError(f"the layers of Dola are 'low', 'high' or a list of numbers, not {layers!r}")
    if isinstance(layers, str):
        if layers not in ("low", "high"):
            raise wrong
        first = min(2, count - 1)
        low, high = (count // 2, count // 2) if count <= 40 else (20, count - 20)
        return (list(range(first, low, 2)) or [first]) if layers == "low" else list(range(high, count, 2))
    try:
        given = list(layers)
    except TypeError as error:
        raise wrong from error
    found = sorted({require_integer("a layer of Dola", layer, least=0, most=count - 1) for layer in given})
    if not found:
        raise InvalidOptionError("Dola needs at least one layer to contrast with: give layers='low'")
    return found
