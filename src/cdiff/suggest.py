"""The nearest right name to a misspelt one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# Names of the field that share few letters with ours.
ALIASES = {
    "lr": "optimizer.learning_rate",
    "spl": "loss.spl_weight",
    "guidance": "sampler.guidance_scale",
    "cfg_scale": "sampler.guidance_scale",
    "max_train_steps": "train.steps",
    "max_steps": "train.steps",
    "num_inference_steps": "sampler.steps",
    "batch": "train.batch_size",
    "batch_size": "train.batch_size",
    "steps": "train.steps",
    "class_word": "concept.class_word",
    "path": "model.path",
}


def nearest(word: str, candidates: Iterable[str], cutoff: float = 0.55) -> str | None:
    """The candidate most like `word`, or None when nothing is near."""
    matches = difflib.get_close_matches(str(word).lower(), list(candidates), n=1, cutoff=cutoff)
    return matches[0] if matches else None


def nearest_key(key: str, keys: Iterable[str]) -> str | None:
    """The dotted key most like `key`, which may lack its group (`spl_weight` -> `loss.spl_weight`)."""
    keys = list(keys)
    last = key.rsplit(".", 1)[-1]
    alias = ALIASES.get(key) or ALIASES.get(last)
    if alias in keys and (key not in keys):
        return alias

    def likeness(candidate: str) -> float:
        whole = difflib.SequenceMatcher(None, key, candidate).ratio()
        ending = difflib.SequenceMatcher(None, last, candidate.rsplit(".", 1)[-1]).ratio()
        return max(whole, 0.95 * ending)

    best = max(keys, key=likeness, default=None)
    return best if best is not None and likeness(best) >= 0.55 else None


def did_you_mean(word: str, candidates: Iterable[str]) -> str:
    """A closing half-sentence: `; did you mean 'ddim'?` or the list of what there is."""
    candidates = list(candidates)
    near = nearest(word, candidates)
    choices = ", ".join(candidates)
    return f"did you mean '{near}' (there is: {choices})?" if near else f"there is: {choices}."
