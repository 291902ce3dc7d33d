"""task=sample: draw images with a finished training run.

    python -m cdiff task=sample run=latest "prompt='a <new1> dog on the beach'"
    python -m cdiff task=sample run=FOLDER prompt_file=prompts.txt sampler=ddim100 images_per_prompt=4
    python -m cdiff task=sample run=base model=pocket "prompt='a dog on the beach'"

`run=base` draws with the untouched base model, for comparison. Tokens of `concept=` are then left out of the prompts
("a <new1> dog" becomes "a dog"), and each image starts from the noise it has with the token in its prompt.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from cdiff import console
from cdiff.adapter import Adapter, load_adapter
from cdiff.concepts import normalize_token
from cdiff.devices import process_device
from cdiff.drawing import TOKEN, chosen_prompts, draw_requests
from cdiff.errors import UserError
from cdiff.finding import find_run
from cdiff.models import DTYPES, load_base, resolve_precision
from cdiff.runs import Run
from cdiff.sampling import make_requests
from cdiff.schema import Config
from cdiff.token_adjust import apply_for_sampling

BASE = "base"


@dataclass(frozen=True)
class Trained:
    """A token and its class, as an adapter tells them."""

    token: str
    class_word: str


def run(cfg: Config) -> dict[str, Any]:
    """Draw the prompts with the run's adapter. Returns where the images are."""
    adapter = None
    if cfg.run != BASE:
        adapter = load_adapter(find_run(one_run(cfg), concept=list(cfg.concepts)).folder / "adapter")
    subjects = trained(adapter) if adapter is not None else configured(cfg)
    requests = make_requests(chosen_prompts(cfg, subjects), cfg.images_per_prompt, cfg.seed)
    if adapter is None:
        requests = [replace(request, prompt=without_tokens(request.prompt)) for request in requests]
    run = Run.start(cfg, "sample")
    with run.timed("load"):
        device = process_device(cfg.device)
        precision = resolve_precision(cfg.precision, device)
        run.note(device=str(device), precision=precision, adapter=str(adapter.path) if adapter else None)
        base = load_base(cfg.model, DTYPES[precision], device)
        if adapter is not None:
            if adapter.info.get("base_model", base.path) != base.path:
                console.warn(f"the adapter was trained on {adapter.info['base_model']} and is applied to {base.path}")
            apply_for_sampling(base, adapter, cfg.sampler.token_adjust)
    with run.timed("sample"):
        drawn = draw_requests(cfg, base, requests, run.folder / "samples")
    rows = {
        "with": f"{adapter.path}" if adapter else f"the base model {base.path} alone",
        "images": f"{len(drawn.images)} in {drawn.folder}",
        "grid": drawn.grid,
        "seconds": ", ".join(f"{name} {seconds:.1f}" for name, seconds in run.info["timings"].items()),
    }
    console.summary("Done", rows)
    outcome = {"folder": str(run.folder), "samples": str(drawn.folder), "grid": str(drawn.grid)}
    run.finish(outcome)
    return outcome


def one_run(cfg: Config) -> str:
    if isinstance(cfg.run, list) and len(cfg.run) != 1:
        raise UserError(f"task=sample draws with one run, got {len(cfg.run)}: say run=latest or run=FOLDER.")
    return cfg.run[0] if isinstance(cfg.run, list) else cfg.run


def trained(adapter: Adapter) -> list[Trained]:
    """The adapter's tokens, each with its class word where adapter.json tells it."""
    words = {concept["token"]: concept["class_word"] for concept in adapter.info.get("concepts", [])}
    return [Trained(token, words.get(token, "")) for token in adapter.tokens]


def configured(cfg: Config) -> list[Trained]:
    """The chosen concepts, for a base that knows none of them; their pictures are not needed."""
    return [
        Trained(normalize_token(concept.token or f"new{place}"), cfg.concept.class_word or concept.class_word or "")
        for place, concept in enumerate(cfg.concepts.values(), 1)
    ]


def without_tokens(prompt: str) -> str:
    """ "a <new1> dog" -> "a dog"."""
    return re.sub(r" +", " ", TOKEN.sub("", prompt)).strip()
