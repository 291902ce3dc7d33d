"""Makes the pocket models from nothing: pictures, then one stage a model."""

from __future__ import annotations

import datetime
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

from cdiff.errors import UserError
from cdiff.pocket import WEIGHTS
from cdiff.pocket.pretrain.card import MODELS

STAGES = (
    *("pictures", "judge", "clips"),  # render
    *("vae", "clip", "probe", "identity", "blip", "unet", "motion"),  # train
    *("scores", "card"),
)
NEEDS = {"unet": ("vae", "clip"), "motion": ("vae", "clip", "unet")}  # the stages it stands on
DATA = {"motion": ("clips", "clips"), "probe": ("judge", "pictures")}  # stage -> folder, and what it holds
UNIX = 1e8  # a deadline above this is a time of the clock, below it minutes from the stage's start


def run_stage(
    stage: str,
    folder: Path,
    settings: dict,
    pictures: int,
    workers: int,
    minutes: float | None,
    device: str,
    log: Callable,
    deadline: float | None = None,
) -> dict:
    """Renders, or trains one model into folder/weights and records how (folder/weights/training). Not for `scores`.

    Args:
        minutes: of training, after the first steps have compiled; null: settings["steps"] steps.
        deadline: when training ends at the latest: unix time, or minutes from now, compilation included.

    Raises:
        UserError: when what the stage stands on is not there yet.
    """
    start, weights = time.time(), folder / "weights"
    if deadline is not None:
        settings = settings | {"deadline": deadline if deadline > UNIX else start + 60 * deadline}
    if stage in ("pictures", "judge"):
        from cdiff.pocket.pretrain.pictures import render_pictures

        count, split = settings.get("pictures", pictures), "train" if stage == "pictures" else stage
        render_pictures(folder / stage, count, workers, settings, log, split)
        return {"pictures": count}
    if stage == "clips":
        from cdiff.pocket.pretrain.clips import SHARD, render_clips

        render_clips(folder / "clips", settings["clips"], workers, log, settings.get("shard", SHARD))
        return {"clips": settings["clips"]}
    if stage == "card":
        from cdiff.pocket.pretrain.card import write_card

        return {"card": str(write_card(weights))}
    data, kind = DATA.get(stage, ("pictures", "pictures"))
    if not (folder / data / f"{kind}.json").exists():
        raise UserError(
            f"no {kind} in {folder / data}: run task=pretrain pretrain.stage={data} first "
            "(it may go on rendering while the models train)"
        )
    needs = () if stage == "motion" and base_of_motion(weights, settings) != weights / "base" else NEEDS.get(stage, ())
    for need in needs:
        if not (record_of(weights, need).exists() or settings.get("wait")):
            raise UserError(f"stage {stage} needs the weights of stage {need} in {weights}: run that one first")
    if settings.get("warm_start") and not any((weights / MODELS[stage][0]).glob("*.safetensors")):
        raise UserError(
            f"pretrain.settings.{stage}.warm_start=true goes on from weights, and there are none in "
            f"{weights / MODELS[stage][0]}"
        )
    if stage != "motion":
        settings = {"pictures": pictures} | settings
    return _train(stage, folder / data, weights, settings, minutes, device, log)


def base_of_motion(weights: Path, settings: dict) -> Path:
    """The folder of the base that the motion stage is for: settings["base"] ("shipped", or a folder), else the one made
    beside it.

    Raises:
        UserError: no such folder.
    """
    named = settings.get("base")
    if named is None:
        return weights / "base"
    folder = WEIGHTS / "base" if named == "shipped" else Path(named).expanduser()
    if not (folder / "unet").is_dir():
        raise UserError(f"pretrain.settings.motion.base={named}: there is no base model in {folder}")
    return folder


def record_of(weights: Path, stage: str) -> Path:
    """Written when a stage has ended and its weights are whole."""
    return weights / "training" / f"{stage}.json"


def wait_for_stages(weights: Path, stage: str, settings: dict) -> None:
    """With settings["wait"] a stage starts beside those that it stands on, and here waits for their end."""
    from cdiff.pocket.pretrain.loop import wait_for

    for need in NEEDS[stage]:
        wait_for(record_of(weights, need).exists, f"weights of stage {need}", settings)


def _train(
    stage: str, data: Path, weights: Path, settings: dict, minutes: float | None, device: str, log: Callable
) -> dict:
    import importlib

    import torch
    from accelerate import PartialState

    # Several processes (accelerate launch) average their gradients; in the unet and motion stages each has data of its
    # own.
    state = PartialState(cpu=device == "cpu")
    if not state.is_main_process:
        log = _silent
    if device == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True  # the shapes never change
    weights.mkdir(parents=True, exist_ok=True)
    start = time.time()
    train = getattr(importlib.import_module(f"cdiff.pocket.pretrain.{stage}"), f"train_{stage}")
    if stage == "motion":
        steps = train(data, state.device, settings, minutes, weights, log)
    else:
        steps = train(_open_pictures(data, settings, state.device), settings, minutes, weights, log)
    record = {
        "settings": {key: value for key, value in settings.items() if key != "deadline"},
        "minutes": minutes,
        "steps": steps,
        "seconds": round(time.time() - start),
        "processes": state.num_processes,
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.machine(),
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
    }
    path = record_of(weights, stage)
    if settings.get("warm_start") and path.exists():  # the weights come from that training too
        earlier = json.loads(path.read_text())
        record["before"] = [*earlier.pop("before", []), earlier]
    path.parent.mkdir(exist_ok=True)
    if state.is_main_process:
        path.write_text(json.dumps(record, indent=1) + "\n")
    return record


def _open_pictures(folder: Path, settings: dict, device):
    from cdiff.pocket.pretrain.loop import wait_for
    from cdiff.pocket.pretrain.pictures import Pictures

    pictures = Pictures(folder, settings["pictures"], device)
    wait_for(pictures.refresh, f"pictures in {folder}", settings)
    while pictures.shards < settings.get("first_shards", 1) and pictures.refresh():
        pass
    return pictures


def _silent(line: str) -> None:
    """What the other processes say: the first speaks for all."""
