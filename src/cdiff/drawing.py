"""From the configuration to images on disk: which prompts, drawn with a progress bar, written with a grid."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from PIL import Image

from cdiff import console, processes
from cdiff.concepts import expand_prompt
from cdiff.errors import UserError
from cdiff.grids import GRID_FILE, write_grid, write_samples
from cdiff.models import Base
from cdiff.sampling import Request, make_requests, sample_together, sampling_steps
from cdiff.schema import Config, SamplerConfig
from cdiff.tokens import PromptEncoder

TOKEN = re.compile(r"<[\w-]+>")
LIVE_CLASSES = frozenset({
    "animal", "baby", "bear", "bird", "boy", "cat", "child", "cow", "dog", "dragon", "duck", "elephant", "fox",
    "frog", "girl", "goat", "hamster", "horse", "kitten", "lion", "man", "monkey", "mouse", "owl", "panda", "parrot",
    "penguin", "person", "pet", "pig", "pony", "puppy", "rabbit", "sheep", "squirrel", "tiger", "turtle", "woman",
})  # fmt: skip


class Subject(Protocol):
    """What a prompt needs to know of a concept; cdiff.concepts.Concept fits."""

    token: str
    class_word: str


@dataclass(frozen=True)
class Drawn:
    """Images on disk, one a request, and the grid of them all."""

    images: list[Image.Image]
    requests: list[Request]
    folder: Path
    grid: Path


def chosen_prompts(
    cfg: Config, subjects: Sequence[Subject], own: Callable[[Sequence[Subject]], list[str]] | None = None
) -> list[str]:
    """The prompts of `prompt=`, `prompts=` or `prompt_file=`, tokens written out; else what `own` makes of the subjects
    (null: `default_prompts`).

    Raises:
        UserError: an unreadable or empty file, a token that no subject has, or nothing to make prompts of.
    """
    if cfg.prompt:
        prompts = [cfg.prompt]
    elif cfg.prompt_file:
        prompts = read_prompts(cfg.prompt_file)
    else:
        prompts = list(cfg.prompts) or (own or default_prompts)(subjects)
    return written_out(prompts, subjects)


def written_out(prompts: Iterable[str], subjects: Sequence[Subject]) -> list[str]:
    """The prompts with their tokens in brackets (new1 -> <new1>).

    Raises:
        UserError: a token that no subject has; the text encoder would take it for a string of letters.
    """
    known = [subject.token for subject in subjects]
    expanded = [expand_prompt(prompt, known) for prompt in prompts]
    for prompt in expanded:
        for token in TOKEN.findall(prompt):
            if token not in known:
                there = f"there is {', '.join(known)}" if known else "the base model has no tokens of its own"
                raise UserError(f"the prompt '{prompt}' names {token}, which was not trained: {there}.")
    return expanded


def read_prompts(file: str | Path) -> list[str]:
    """One prompt a line; empty lines and lines that begin with # are passed over."""
    path = Path(file).expanduser()
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise UserError(f"prompt_file={path} is not UTF-8 text; save it as UTF-8, one prompt a line.") from error
    except OSError as error:
        raise UserError(f"prompt_file={path} can't be read ({error.strerror or error}).") from error
    prompts = [line for line in lines if line and not line.startswith("#")]
    if not prompts:
        raise UserError(f"prompt_file={path} holds no prompt; write one a line.")
    return prompts


def default_prompts(subjects: Sequence[Subject]) -> list[str]:
    """A few prompts that show what was learned and what was kept: the subject, in scenes, with what its class wears.

    Raises:
        UserError: there is no subject.
    """
    if not subjects:
        raise UserError("there is nothing to draw: give a prompt (prompt=, prompts= or prompt_file=).")
    names = [_named(subject) for subject in subjects]
    if len(names) > 1:
        together = " next to ".join(f"a {name}" for name in names)
        return [*(f"a photo of a {name}" for name in names), together, f"{together} on the beach"]
    [name], [subject] = names, subjects
    worn = f"a {name} wearing headphones" if _is_live(subject) else f"a {name} on a wooden floor"
    return [f"a photo of a {name}", worn, f"a {name} on the beach", f"a {name} in the snow"]


def moving_prompts(subjects: Sequence[Subject]) -> list[str]:
    """A prompt a subject that names a movement, for clips.

    Raises:
        UserError: there is no subject.
    """
    if not subjects:
        raise UserError("there is nothing to draw: give a prompt (prompt=, prompts= or prompt_file=).")
    return [f"a {_named(subject)} {'running' if _is_live(subject) else 'moving'} on the beach" for subject in subjects]


def _named(subject: Subject) -> str:
    return f"{subject.token} {subject.class_word}".strip()


def _is_live(subject: Subject) -> bool:
    return bool(subject.class_word) and subject.class_word.lower().split()[-1] in LIVE_CLASSES


def draw(
    cfg: Config,
    base: Base,
    prompts: Sequence[str],
    folder: Path,
    encoder: PromptEncoder | None = None,
) -> Drawn:
    """Draw `cfg.images_per_prompt` images of each prompt and write them with prompts.json and a grid."""
    requests = make_requests(prompts, cfg.images_per_prompt, cfg.seed)
    return draw_requests(cfg, base, requests, folder, encoder)


def draw_requests(
    cfg: Config, base: Base, requests: list[Request], folder: Path, encoder: PromptEncoder | None = None
) -> Drawn:
    """As `draw`, for requests made elsewhere."""
    with console.progress(sampling_steps(requests, cfg.sampler), "Drawing") as ticker:
        images = sample_together(base, requests, cfg.sampler, encoder, resolution=cfg.model.resolution, progress=ticker)
    if processes.is_first():
        write_samples(folder, images, requests, facts(cfg, cfg.sampler))
        write_grid(folder / GRID_FILE, images, requests)
    return Drawn(images, requests, folder, folder / GRID_FILE)


def facts(cfg: Config, sampler: SamplerConfig) -> dict[str, object]:
    """What a PNG says of how it was made, beside its prompt and seed."""
    adjust = sampler.token_adjust
    adjusted = {} if adjust.alpha == 0 and adjust.beta is None else {"token_adjust": f"{adjust.alpha}, {adjust.beta}"}
    return adjusted | {
        "sampler": sampler.name,
        "steps": sampler.steps,
        "guidance_scale": sampler.guidance_scale,
        "eta": sampler.eta,
        "negative_prompt": sampler.negative_prompt,
        "model": cfg.model.path,
    }
