"""A beam search from a request to its texts."""

from collections import Counter

import numpy as np

from forerun.errors import InvalidOptionError
from forerun.runtime.beams import BeamSearch
from forerun.runtime.engine import Engine
from forerun.runtime.request import TARGET, Generation, Request, Stats
from forerun.runtime.search.beams import Beam, BeamGroup, Found, ranked
from forerun.runtime.search.rows import BeamRows
from forerun.runtime.spelling import Tokenizer


def search_beams(
    engine: Engine, request: Request, settings: BeamSearch, tokenizer: Tokenizer | None
) -> list[Generation]:
    """Returns the finished texts of a beam search, the best first; as many as beams unless too few tokens are allowed.

    Raises `TooLongError`, `NotANumberError`, and `InvalidOptionError` if hooks leave no text.
    """
    began = engine.clock()
    rows, root = BeamRows(engine, request, settings.num_beams), Beam()
    try:
        rows.begin(root)
        read = engine.clock()
        found = ranked(_searched(rows, root, request, settings))
    finally:
        rows.close()
    if not found:
        raise InvalidOptionError("the hooks exclude all texts: no beam has reached its end")
    times = read - began, engine.clock() - read
    return [_generation(each, request, tokenizer, rows, times) for each in found]


def _searched(rows: BeamRows, root: Beam, request: Request, settings: BeamSearch) -> list[BeamGroup]:
    """Returns the groups with all their texts."""
    groups = [BeamGroup(settings, request, root) for _ in range(settings.num_beam_groups)]
    while beams := list(dict.fromkeys(beam for group in groups for beam in group.beams)):
        scores = dict(zip(beams, rows.evaluate(beams), strict=True))
        chosen = Counter[int]()  # by the groups before
        for group in groups:
            if group.beams:
                chosen.update(group.extend([scores[beam] for beam in group.beams], chosen, rows.ends))
    return groups


def _generation(
    found: Found, request: Request, tokenizer: Tokenizer | None, rows: BeamRows, times: tuple[float, float]
) -> Generation:
    """Returns a text with the cost of the search. `times`: the seconds of reading the prompt, and of all steps."""
    path = found.beam.path
    token_ids = [*found.beam.token_ids, found.token_id]
    logits = [beam.logits for beam in path if beam.logits is not None]
    scores = [beam.scores for beam in path if beam.scores is not None]
    text = None if tokenizer is None else tokenizer.decode(token_ids, skip_special_tokens=True)
    count = len(token_ids)
    stats = Stats(rows.steps, rows.rows, count, *times, lengths={1: count}, tokens_by={TARGET: count})
    return Generation(
        token_ids,
        np.stack(logits) if logits else None,
        text,
        stats,
        request.prompt,
        np.stack(scores) if scores else None,
        "stop" if found.stopped else "length",
        float(found.score),
    )
