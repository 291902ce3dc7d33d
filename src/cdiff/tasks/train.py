"""task=train: learn the chosen concepts, write the adapter, and draw samples of them in the same run.

The run's folder gets adapter/ (once training is over, whole or not at all), samples/ with a grid, and validation/
where `validation.every` asks for images on the way.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from cdiff import console
from cdiff.adapter import save_adapter
from cdiff.concepts import Concept, resolve_concepts
from cdiff.data.images import read_folder
from cdiff.data.latents import TrainingViews, encode_views
from cdiff.drawing import Drawn, chosen_prompts, default_prompts, draw, facts, written_out
from cdiff.engine import TrainResult, process_device, train
from cdiff.grids import write_grid, write_samples
from cdiff.methods import Trainables, prepare
from cdiff.models import DTYPES, Base, load_base, resolve_precision
from cdiff.runs import Run
from cdiff.sampling import make_requests, sample
from cdiff.schema import Config
from cdiff.tokens import PromptEncoder, add_tokens, write_rows
from cdiff.tracking import Tracker, open_tracker

ENCODED_PIXELS = 8 * 512 * 512  # of training views, encoded at once


def run(cfg: Config) -> dict[str, Any]:
    """Train, save, draw. Returns folders, losses and timings; the run's folder says done when this returns."""
    run = Run.start(cfg, "train")
    with ExitStack() as stack:
        tracker = open_tracker(cfg, run)
        stack.callback(tracker.finish)
        with run.timed("load"):
            concepts = resolve_concepts(cfg)
            prompts = chosen_prompts(cfg, concepts)  # a mistake here must not wait for the training to end
            validation_prompts = written_out(cfg.validation.prompts or default_prompts(concepts)[:2], concepts)
            base = load(cfg, run)
            rows = add_tokens(base, concepts)
        with run.timed("encode"):
            views = encode(cfg, base, concepts)
        with run.timed("train"):
            trainables = prepare(base, cfg.method)
            validate = Validation(cfg, base, PromptEncoder(base, rows), validation_prompts, run.folder, tracker)
            result = learn(cfg, base, concepts, rows, trainables, views, tracker, validate)
            vectors = {concept.token: row for concept, row in zip(concepts, result.token_rows, strict=True)}
            info = adapter_info(cfg, concepts, result)
            adapter = save_adapter(run.folder / "adapter", result.unet_weights, vectors, info)
        drawn = None
        if "sample" in cfg.train.then:
            with run.timed("sample"):
                trainables.restore()
                write_rows(base, result.token_rows, list(vectors))
                drawn = draw(cfg, base, prompts, run.folder / "samples")
                tracker.images("samples", drawn.images, [r.prompt for r in drawn.requests], result.steps)
        timings = dict(run.info["timings"])
        tracker.summary({f"final {name}": value for name, value in result.losses.items()} | {"timings": timings})
    console.summary("Done", panel(concepts, result, timings, adapter, drawn))
    outcome = {"folder": str(run.folder), "adapter": str(adapter), "losses": result.losses, "timings": timings}
    if drawn is not None:
        outcome |= {"samples": str(drawn.folder), "grid": str(drawn.grid)}
    run.finish(outcome)
    return outcome


def load(cfg: Config, run: Run) -> Base:
    """The base in the precision and on the device of the configuration; both are noted in run.json."""
    device = process_device(cfg.device)
    precision = resolve_precision(cfg.precision, device)
    run.note(device=str(device), precision=precision)
    return load_base(cfg.model, DTYPES[precision], device)


def encode(cfg: Config, base: Base, concepts: list[Concept]) -> TrainingViews:
    """The training views in latent space, so that no step runs the VAE."""
    side = cfg.model.resolution
    sharpest = round(side * max(1.0, cfg.augment.zoom_max))  # no view needs more pixels of a picture's shorter side
    pictures = [read_folder(concept.folder, max_side=sharpest) for concept in concepts]
    samples = cfg.train.steps * cfg.train.batch_size * cfg.train.gradient_accumulation_steps
    count = min(cfg.augment.views or samples, samples)
    with console.progress(count, "Encoding pictures") as ticker:
        return encode_views(
            base.vae,
            concepts,
            pictures,
            count,
            cfg.augment,
            side,
            cfg.seed,
            base.device,
            min(64, max(1, ENCODED_PIXELS // side**2)),
            cfg.train.prompt_templates,
            progress=ticker,
        )


def learn(
    cfg: Config,
    base: Base,
    concepts: list[Concept],
    rows: nn.Parameter,
    trainables: Trainables,
    views: TrainingViews,
    tracker: Tracker,
    validate: Validation,
) -> TrainResult:
    """The engine under a progress bar."""
    with console.progress(cfg.train.steps, "Training") as ticker:

        def progress(losses: dict[str, float]) -> None:
            ticker(1, losses_in_words(losses))

        return train(cfg, base, concepts, rows, trainables, views, tracker, progress=progress, on_validation=validate)


class Validation:
    """Draws the validation prompts while training goes on; the same noise each time, so that one sees the change."""

    def __init__(
        self, cfg: Config, base: Base, encoder: PromptEncoder, prompts: list[str], folder: Path, tracker: Tracker
    ) -> None:
        self.cfg, self.base, self.encoder, self.tracker = cfg, base, encoder, tracker
        self.sampler = replace(cfg.sampler, steps=cfg.validation.steps)
        self.requests = make_requests(prompts, cfg.validation.images_per_prompt, cfg.seed)
        self.folder = folder / "validation"

    def __call__(self, step: int) -> None:
        images = sample(self.base, self.requests, self.sampler, self.encoder, resolution=self.cfg.model.resolution)
        folder = self.folder / f"step-{step:06d}"
        write_samples(folder, images, self.requests, facts(self.cfg, self.sampler) | {"training_step": step})
        write_grid(folder / "grid.png", images, self.requests)
        self.tracker.images("validation", images, [request.prompt for request in self.requests], step)


def adapter_info(cfg: Config, concepts: list[Concept], result: TrainResult) -> dict[str, Any]:
    """What adapter.json says beside tokens and versions."""
    return {
        "base_model": cfg.model.path,
        "revision": cfg.model.revision,
        "resolution": cfg.model.resolution,
        "method": cfg.method.name,
        "concepts": [
            {"name": c.name, "token": c.token, "class_word": c.class_word, "initializer": c.initializer}
            for c in concepts
        ],
        "steps": result.steps,
        "learning_rate": result.learning_rate,
        "spl_weight": cfg.loss.spl_weight,
        "seed": cfg.seed,
    }


def losses_in_words(losses: dict[str, float]) -> str:
    return ", ".join(f"{name.removeprefix('loss/')} {value:.4f}" for name, value in losses.items() if "loss/" in name)


def panel(
    concepts: list[Concept], result: TrainResult, timings: dict[str, float], adapter: Path, drawn: Drawn | None
) -> dict[str, str]:
    """The rows of the summary: what was learned, how it went, where it is, what to type next."""
    learned = ", ".join(f"{c.token} {c.class_word} ({c.name})" for c in concepts)
    rows = {
        "learned": f"{learned} in {result.steps} steps, learning rate {result.learning_rate:.3g}",
        "losses": losses_in_words(result.losses),
        "seconds": ", ".join(f"{name} {seconds:.1f}" for name, seconds in timings.items()),
        "adapter": str(adapter),
    }
    if drawn is not None:
        rows["images"] = f"{len(drawn.images)} in {drawn.folder}"
        rows["grid"] = str(drawn.grid)
    prompt = default_prompts(concepts[:1])[1]
    rows["next"] = f"""python -m cdiff task=sample run={adapter.parent} "prompt='{prompt}'\""""
    return rows
