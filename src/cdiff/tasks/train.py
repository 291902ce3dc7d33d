"""task=train: learn the chosen concepts, write the adapter, and draw samples of them in the same run.

The run's folder gets adapter/ (once training is over, whole or not at all), samples/ with a grid, and validation/
where `validation.every` asks for images on the way. With checkpoints/ a run that was stopped goes on (`resume=`).
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cdiff import console, processes, shared
from cdiff.adapter import save_adapter
from cdiff.checkpoint import FOLDER as CHECKPOINTS
from cdiff.checkpoint import Checkpoint, Store
from cdiff.checkpoint import read as read_checkpoint
from cdiff.class_images import prior_views
from cdiff.concepts import Concept, resolve_concepts
from cdiff.data.beside import read_concept
from cdiff.data.images import Picture
from cdiff.data.latents import TrainingViews, encode_views
from cdiff.data.prompts import load_templates
from cdiff.devices import process_device
from cdiff.drawing import Drawn, chosen_prompts, default_prompts, draw, facts, written_out
from cdiff.engine import TrainResult, train
from cdiff.errors import UserError
from cdiff.evaluation.trained import check_evaluation, evaluate_trained
from cdiff.grids import write_grid, write_samples
from cdiff.keeping import Keeper
from cdiff.memory import views_at_once
from cdiff.methods import Trainables, prepare
from cdiff.metrics.references import content_key
from cdiff.models import DTYPES, Base, load_base, resolve_precision
from cdiff.probes import Probes
from cdiff.resuming import changed_keys
from cdiff.runs import Run
from cdiff.sampling import make_requests, sample
from cdiff.schema import Config
from cdiff.signals import StopRequest
from cdiff.token_adjust import adjust_tokens
from cdiff.tokens import PromptEncoder, add_tokens, write_rows
from cdiff.tracking import Tracker, open_tracker


def run(cfg: Config) -> dict[str, Any]:
    """Train, save, draw. Returns folders, losses and timings; the run's folder says done when this returns."""
    with StopRequest().listening() as stop:
        return train_run(cfg, stop)


def train_run(cfg: Config, stop: StopRequest) -> dict[str, Any]:
    """All of it; `stop` is told of signals."""
    run, checkpoint = open_run(cfg)
    keeper = Keeper(cfg.checkpoints, Store(run.folder, cfg.checkpoints.keep), run.checkpoint_facts, stop, checkpoint)
    with ExitStack() as stack:
        tracker = open_tracker(cfg, run, checkpoint.step if checkpoint else 0)
        stack.callback(tracker.finish)
        with run.timed("load"):
            concepts = resolve_concepts(cfg)
            prompts = chosen_prompts(cfg, concepts)  # a mistake here must not wait for the training to end
            validation_prompts = written_out(cfg.validation.prompts or default_prompts(concepts)[:2], concepts)
            scoring = check_evaluation(cfg, concepts) if "evaluate" in cfg.train.then else None
            base = load(cfg, run)
        prior = class_views(cfg, run, base, concepts)  # drawn by the untouched base: before it gets new tokens
        with run.timed("load"):
            rows = add_tokens(base, concepts, cfg.seed)
        with run.timed("encode"):
            views = encode(cfg, base, concepts)
        with run.timed("train"):
            torch.manual_seed(cfg.seed)  # a LoRA starts from torch's own random state, which other jobs have moved
            trainables = prepare(base, cfg.method, cfg.loss.spl_weight)
            validate = Validation(cfg, base, PromptEncoder(base, rows), validation_prompts, run.folder, tracker)
            probes = Probes(cfg, base, rows, concepts, tracker, run.folder, validate)
            result = learn(cfg, base, concepts, rows, trainables, views, prior, tracker, validate, keeper, probes)
            vectors = {concept.token: row for concept, row in zip(concepts, result.token_rows, strict=True)}
            info = adapter_info(cfg, concepts, result) | {"token_widths": base.token_widths}
            folder, text = run.folder / "adapter", result.text_encoder_weights
            adapter = folder
            if processes.is_first():
                adapter = save_adapter(folder, result.unet_weights, vectors, info, text)
            processes.from_first(None)  # nobody goes on before it is there
        drawn, scores = None, {}
        if cfg.train.then:
            trainables.restore()
            words = {concept.token: concept.class_word for concept in concepts}
            shown = adjust_tokens(base, vectors, words, cfg.sampler.token_adjust)
            write_rows(base, torch.stack(list(shown.values())), list(shown))
        if "sample" in cfg.train.then:
            with run.timed("sample"):
                drawn = draw(cfg, base, prompts, run.folder / "samples")
                tracker.images("samples", drawn.images, [r.prompt for r in drawn.requests], result.steps)
                rows_drawn = [[r.prompt, r.seed, image] for r, image in zip(drawn.requests, drawn.images)]
                tracker.table("samples/table", ["prompt", "seed", "image"], rows_drawn)
        if scoring is not None:
            with run.timed("evaluate"):
                scores = evaluate_trained(cfg, base, concepts, run.folder, scoring, tracker)
        timings = dict(run.info["timings"])
        tracker.summary({f"final {name}": value for name, value in result.losses.items()} | {"timings": timings})
    console.summary("Done", panel(concepts, result, timings, adapter, drawn))
    outcome = {"folder": str(run.folder), "adapter": str(adapter), "losses": result.losses, "timings": timings} | scores
    if drawn is not None:
        outcome |= {"samples": str(drawn.folder), "grid": str(drawn.grid)}
    run.finish(outcome)
    return outcome


def open_run(cfg: Config) -> tuple[Run, Checkpoint | None]:
    """A new run, or with `resume=` an old one and the checkpoint it goes on from (None: from its beginning)."""
    if cfg.resume.run is None:
        return Run.start(cfg, "train"), None
    named = Path(cfg.resume.run)
    folder = named.parent.parent if named.parent.name == CHECKPOINTS else named
    checkpoint = read_checkpoint(named) if folder != named else Store(folder, cfg.checkpoints.keep).newest()
    facts = {"from_step": checkpoint.step if checkpoint else 0, "changed": changed_keys(Run(folder), cfg)}
    events = checkpoint.facts.get("events") if checkpoint else 0
    if not isinstance(events, int) or events < 0:
        raise UserError(f"{checkpoint.path} does not tell how much was logged before it: it can't be gone on from.")
    run = Run.resume(folder, cfg, facts)
    run.rewind(events)
    where = f"{checkpoint.path}, step {checkpoint.step} of {cfg.train.steps}" if checkpoint else "its beginning"
    console.say(f"Going on with {folder} from {where}")
    return run, checkpoint


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
    pictures = [read_concept(concept.folder, sharpest, cfg.train.captions) for concept in concepts]
    samples = cfg.train.steps * cfg.train.batch_size * cfg.train.gradient_accumulation_steps * processes.count()
    count = min(cfg.augment.views or samples, samples)

    def make() -> TrainingViews:
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
                views_at_once(cfg.memory, side, base.device.type),
                cfg.train.prompt_templates,
                progress=ticker,
            )

    return shared.get("views", views_key(cfg, base, concepts, pictures, count), make)


def views_key(
    cfg: Config, base: Base, concepts: list[Concept], pictures: list[list[Picture]], count: int
) -> tuple[object, ...]:
    """All that decides the training views: jobs of a sweep that agree in it share them."""

    def seen(picture: Picture) -> tuple[str | None, ...]:
        return content_key(picture.image), picture.caption, picture.mask and content_key(picture.mask)

    shown = [(c.token, c.class_word, *map(seen, own)) for c, own in zip(concepts, pictures)]
    made_by = (base.path, base.revision, str(base.dtype), str(base.device), cfg.model.variant)
    how = (count, repr(cfg.augment), cfg.model.resolution, cfg.seed, *load_templates(cfg.train.prompt_templates))
    return (*made_by, *how, *shown)


def class_views(cfg: Config, run: Run, base: Base, concepts: list[Concept]) -> TrainingViews | None:
    """The class images of prior preservation in latent space, drawn where they are missing; None without a prior."""
    if cfg.prior.name == "none":
        return None
    with run.timed("prior"):
        return prior_views(cfg, base, concepts)


def learn(
    cfg: Config,
    base: Base,
    concepts: list[Concept],
    rows: nn.Parameter,
    trainables: Trainables,
    views: TrainingViews,
    prior: TrainingViews | None,
    tracker: Tracker,
    validate: Validation,
    keeper: Keeper,
    probes: Probes,
) -> TrainResult:
    """The engine under a progress bar."""
    done = keeper.start.step if keeper.start else 0
    with console.progress(cfg.train.steps - done, "Training") as ticker:

        def progress(losses: dict[str, float]) -> None:
            ticker(1, losses_in_words(losses))

        return train(
            cfg,
            base,
            concepts,
            rows,
            trainables,
            views,
            tracker,
            prior_views=prior,
            progress=progress,
            on_validation=validate,
            keeping=keeper,
            probe=probes,
        )


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
        "prior": cfg.prior.name,
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
