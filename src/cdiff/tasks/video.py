"""task=video: draw clips with a finished run, by AnimateDiff, with no further training.

    python -m cdiff task=video run=latest "prompt='a <new1> dog running on the beach'"
    python -m cdiff task=video run=FOLDER prompt_file=prompts.txt images_per_prompt=4 video.then=[evaluate]
    python -m cdiff task=video run=base model=sd15 "prompt='a dog running on the beach'"

Any method's run, merged ones too: its weights are put into the base's UNet, and that into the motion UNet. `run=base`
draws with the untouched base, for comparison (see task=sample).
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cdiff import console
from cdiff.adapter import Adapter, load_adapter
from cdiff.devices import process_device
from cdiff.drawing import chosen_prompts, facts, moving_prompts
from cdiff.evaluation.clips import ClipScorer
from cdiff.evaluation.evaluating import Scoring, open_scoring
from cdiff.evaluation.pictures import given_pictures, pictures_of_run
from cdiff.evaluation.runs import subjects_of
from cdiff.evaluation.tables import show_result, track
from cdiff.finding import find_run
from cdiff.models import DTYPES, Base, load_base, resolve_precision
from cdiff.runs import Run
from cdiff.sampling import Request, make_requests, sampling_steps
from cdiff.schema import Config
from cdiff.tasks.sample import BASE, configured, one_run, trained, without_tokens
from cdiff.token_adjust import apply_for_sampling
from cdiff.tracking import Tracker, open_tracker
from cdiff.video.drawing import check_memory, draw_clips, make_clip_pipeline
from cdiff.video.motion import animated, check_fit, find_motion, load_motion
from cdiff.video.writing import NO_FFMPEG, ClipWriter, find_ffmpeg

if TYPE_CHECKING:
    from diffusers import AnimateDiffPipeline

    from cdiff.data.images import Picture

CLIPS, FRAMES = "clips", "frames"  # folders of a run
NOBODY = "any"  # how clips of the base alone are labelled


@dataclass(frozen=True)
class Scored:
    """What video.then=[evaluate] scores by: opened before anything is drawn."""

    scoring: Scoring
    subjects: list[Any]
    pictures: dict[str, list[Picture]]


@dataclass(frozen=True)
class Drawing:
    """What `_draw` works with."""

    run: Run
    tracker: Tracker
    base: Base
    pipe: AnimateDiffPipeline
    requests: list[Request]
    scored: Scored | None


def run(cfg: Config) -> dict[str, Any]:
    """Draw the prompts as clips. Returns where they are, and their scores with video.then=[evaluate]."""
    source = None if cfg.run == BASE else find_run(one_run(cfg), concept=list(cfg.concepts))
    adapter = load_adapter(source.folder / "adapter") if source else None
    motion_folder = find_motion(cfg.video)
    check_fit(motion_folder, cfg.model, cfg.video)
    device = process_device(cfg.device)
    precision = resolve_precision(cfg.precision, device)
    check_memory(cfg.video, device)
    requests = _requests(cfg, adapter)
    scored = _open_scoring(cfg, source, adapter) if cfg.video.then else None
    run = Run.start(cfg, "video")
    with ExitStack() as stack:
        tracker = open_tracker(cfg, run)
        stack.callback(tracker.finish)
        run.note(device=str(device), precision=precision, motion=cfg.video.motion_adapter)
        run.note(adapter=str(adapter.path) if adapter else None)
        run.note(trained=str(source.folder.absolute()) if source else None)
        with run.timed("load"):
            base, pipe = _load(cfg, adapter, motion_folder, DTYPES[precision], device)
        drawing = Drawing(run, tracker, base, pipe, requests, scored)
        outcome = _draw(cfg, drawing)
        _show(run, adapter, base.path, outcome)
    run.finish(outcome)
    return outcome


def _requests(cfg: Config, adapter: Adapter | None) -> list[Request]:
    subjects = trained(adapter) if adapter is not None else configured(cfg)
    requests = make_requests(chosen_prompts(cfg, subjects, moving_prompts), cfg.images_per_prompt, cfg.seed)
    if adapter is None:
        requests = [replace(request, prompt=without_tokens(request.prompt)) for request in requests]
    return requests


def _open_scoring(cfg: Config, source: Run | None, adapter: Adapter | None) -> Scored:
    given = given_pictures(cfg)
    scoring = open_scoring(cfg, cfg.model.world, process_device(cfg.device), with_references=bool(given or source))
    for scorer in scoring.scorers:
        scorer.load()  # what is wrong with a metric's model is told before the clips are drawn
    if source is None:
        return Scored(scoring, [], {NOBODY: given})
    subjects = subjects_of(source, adapter)
    return Scored(scoring, subjects, pictures_of_run(cfg, source, subjects, scoring))


def _draw(cfg: Config, drawing: Drawing) -> dict[str, Any]:
    """Draw, write, score. Returns the run's result."""
    run, requests, scored = drawing.run, drawing.requests, drawing.scored
    ffmpeg = find_ffmpeg() if cfg.video.mp4 else None
    if cfg.video.mp4 and ffmpeg is None:
        console.warn(NO_FFMPEG)
    scorer = ClipScorer(cfg, scored.scoring, scored.subjects, scored.pictures, run.folder) if scored else None
    said = facts(cfg, cfg.sampler) | {"motion_adapter": cfg.video.motion_adapter}
    clips = run.folder / CLIPS
    writer = ClipWriter(clips, run.folder / FRAMES, requests, cfg.video, said, ffmpeg)
    files = []
    with run.timed("video"), console.progress(sampling_steps(requests, cfg.sampler), "Drawing") as ticker:
        options = {"resolution": cfg.model.resolution, "progress": ticker}
        for request, frames in draw_clips(drawing.base, drawing.pipe, requests, cfg.video, cfg.sampler, **options):
            files.append(writer.add(request, frames))
            if scorer is not None:
                scorer.add(request, frames, files[-1])
        sheet = writer.sheet()
    captions = [f"{request.prompt} (seed {request.seed})" for request in requests]
    drawing.tracker.videos("clips", files, captions, step=0)
    outcome: dict[str, Any] = {"folder": str(run.folder), "clips": str(clips), "sheet": str(sheet)}
    return outcome | (_results(cfg, run, scorer, drawing.tracker) if scorer is not None else {})


def _load(
    cfg: Config, adapter: Adapter | None, motion_folder: Path, dtype: torch.dtype, device: torch.device
) -> tuple[Base, AnimateDiffPipeline]:
    """The base with adapter and motion modules, and the pipeline around it."""
    base = load_base(cfg.model, dtype, torch.device("cpu") if cfg.video.cpu_offload else device)
    if adapter is not None:
        if adapter.info.get("base_model", base.path) != base.path:
            console.warn(f"the adapter was trained on {adapter.info['base_model']} and is applied to {base.path}")
        apply_for_sampling(base, adapter, cfg.sampler.token_adjust)
    motion = load_motion(motion_folder, cfg.video, dtype)
    base = animated(base, motion)
    return base, make_clip_pipeline(base, motion, cfg.video, cfg.sampler, device)


def _results(cfg: Config, run: Run, scorer: ClipScorer, tracker: Tracker) -> dict[str, Any]:
    """The scores of all clips: written, shown, sent. For the run's result."""
    name = "/".join(run.folder.absolute().parts[-3:])
    about = {"name": name, "run": str(run.folder.absolute()), "method": cfg.method.name, "setting": cfg.method.name}
    result = scorer.result(about | {"image_folder": str((run.folder / CLIPS).absolute())})
    show_result(result)
    track(tracker, [result], None)
    overall = {name: one.mean for name, one in result.summary.overall().items()}
    return {"evaluation": str(result.folder), "overall": overall, "objective": overall.get(cfg.evaluate.objective)}


def _show(run: Run, adapter: Adapter | None, path: str, outcome: dict[str, Any]) -> None:
    clips = run.folder / CLIPS
    counts = [(len(list(clips.glob(f"*.{suffix}"))), suffix.upper()) for suffix in ("gif", "mp4")]
    rows = {
        "with": f"{adapter.path}" if adapter else f"the base model {path} alone",
        "clips": f"{' and '.join(f'{count} {name}' for count, name in counts if count)} in {clips}",
        "sheet": outcome["sheet"],
        "seconds": ", ".join(f"{name} {seconds:.1f}" for name, seconds in run.info["timings"].items()),
    }
    console.summary("Done", rows)
