"""Makes the pocket models from nothing: pictures, then one stage a model."""

from __future__ import annotations

import datetime
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

from cdiff.errors import UserError

STAGES = ("pictures", "vae", "clip", "probe", "identity", "unet", "scores")
NEEDS = {"unet": ("base/vae", "base/text_encoder"), "scores": ("base/unet", "probe", "clip", "identity")}


def run_stage(
    stage: str,
    folder: Path,
    settings: dict,
    pictures: int,
    workers: int,
    minutes: float | None,
    device: str,
    log: Callable,
) -> dict:
    """Trains one stage into folder/weights and records how (folder/weights/training.json). Not for `scores`.

    Raises:
        UserError: when what the stage stands on is not there yet.
    """
    from cdiff.pocket.pretrain import pictures as store

    shown, weights = folder / "pictures", folder / "weights"
    if stage == "pictures":
        store.render_pictures(shown, pictures, workers, log, settings.get("shard", store.SHARD))
        return {"pictures": pictures}
    if not (shown / "pictures.json").exists():
        raise UserError(
            f"no pictures in {shown}: run task=pretrain pretrain.stage=pictures first (it may run at the same time)"
        )
    for need in NEEDS.get(stage, ()):
        if not (weights / need).is_dir():
            raise UserError(f"stage {stage} needs {weights / need}: run the stage that makes it first")
    return _train(stage, shown, weights, settings, minutes, device, log)


def _train(
    stage: str, shown: Path, weights: Path, settings: dict, minutes: float | None, device: str, log: Callable
) -> dict:
    import importlib

    import torch
    from accelerate import PartialState

    from cdiff.pocket.pretrain.pictures import Pictures

    # Several processes (accelerate launch) average their gradients; in the unet stage each has pictures of its own.
    state = PartialState(cpu=device == "cpu")
    if not state.is_main_process:
        log = _silent
    if device == "cuda":
        torch.set_float32_matmul_precision("high")
    pictures = Pictures(shown, settings.get("pictures", 10**9), state.device)
    while not pictures.refresh():  # the first shard may still be rendering
        time.sleep(1.0)
    while pictures.shards < settings.get("first_shards", 1) and pictures.refresh():
        pass
    weights.mkdir(parents=True, exist_ok=True)
    start = time.time()
    module = importlib.import_module(f"cdiff.pocket.pretrain.{stage}")
    steps = getattr(module, f"train_{stage}")(pictures, settings, minutes, weights, log)
    record = {
        "settings": settings,
        "steps": steps,
        "seconds": round(time.time() - start),
        "processes": state.num_processes,
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.machine(),
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
    }
    path = weights / "training" / f"{stage}.json"
    path.parent.mkdir(exist_ok=True)
    if state.is_main_process:
        path.write_text(json.dumps(record, indent=1) + "\n")
    return record


def _silent(line: str) -> None:
    """What the other processes say: the first speaks for all."""
