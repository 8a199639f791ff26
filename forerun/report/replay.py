"""A recorded generation as the data of a report."""

from __future__ import annotations

from collections.abc import Sequence

from forerun.report.data import Plain, Replay, ReplayStep
from forerun.runtime.recording import Iteration, Outcome
from forerun.runtime.request import Generation, Phases
from forerun.runtime.spelling import Spelling, Tokenizer


def replay(
    prompt: str,
    iterations: Sequence[Iteration],
    generation: Generation,
    plain: Generation | None,
    tokenizer: Tokenizer | None,
) -> Replay:
    """Returns the replay of one generation, alone in its iterations; `plain` is its beginning by plain decoding."""
    decoding = [(each, each.outcomes[0]) for each in iterations if each.outcomes]
    began = decoding[0][0].began if decoding else 0.0
    names: dict[str, int] = {}
    spelling, steps = None if tokenizer is None else Spelling(tokenizer), list[ReplayStep]()
    for number, (iteration, outcome) in enumerate(decoding, start=1):
        text = "" if spelling is None else spelling.add(outcome.tokens, last=number == len(decoding))
        steps.append(replay_step(iteration, outcome, began, names, text))
    stats = generation.stats
    return Replay(
        prompt=prompt,
        proposers=tuple(names),
        vocabulary=words(steps, tokenizer),
        steps=tuple(steps),
        token_ids=tuple(generation.token_ids),
        text=generation.text or "",
        prefill_seconds=stats.prefill_seconds,
        decode_seconds=stats.decode_seconds,
        accepted_length=stats.accepted_length,
        tokens_per_second=stats.tokens_per_second,
        phases=_phases(stats.phases or Phases()),
        lengths=tuple(stats.lengths.items()),
        tokens_by=tuple(stats.tokens_by.items()),
        plain=None if plain is None else _plain(generation, plain),
    )


def _plain(generation: Generation, plain: Generation) -> Plain:
    count = len(plain.token_ids)
    return Plain(count, plain.stats.tokens_per_second, generation.token_ids[:count] == plain.token_ids)


def replay_step(iteration: Iteration, outcome: Outcome, began: float, names: dict[str, int], text: str) -> ReplayStep:
    """Returns one iteration of a text that began at `began`. `names` numbers the proposers, and grows."""
    tree = outcome.tree
    proposers = [names.setdefault(name, len(names)) if name else -1 for name in outcome.proposers]
    return ReplayStep(
        began=round(iteration.began - began, 7),
        ended=round(iteration.ended - began, 7),
        phases=_phases(iteration.phases),
        tokens=tuple(tree.token.tolist()),
        parents=tuple(tree.parent.tolist()),
        probabilities=tuple(round(each, 4) for each in tree.edge_probability.tolist()),
        proposers=tuple(proposers),
        path=tuple(outcome.path),
        committed=tuple(outcome.tokens),
        text=text,
    )


def _phases(phases: Phases) -> tuple[float, float, float, float]:
    return round(phases.draft, 7), round(phases.step, 7), round(phases.verify, 7), round(phases.commit, 7)


def words(steps: Sequence[ReplayStep], tokenizer: Tokenizer | None) -> tuple[tuple[int, str], ...]:
    """The tokens that occur, each with its text; without a tokenizer, with its number."""
    found = sorted({token for step in steps for token in (*step.tokens, *step.committed)})
    if tokenizer is None:
        return tuple((token, str(token)) for token in found)
    return tuple((token, tokenizer.decode([token], skip_special_tokens=False)) for token in found)
