"""Which scorers a configuration asks for."""

from __future__ import annotations

import logging

import torch

from cdiff.errors import UserError
from cdiff.metrics.family import Place
from cdiff.metrics.interface import Scorer
from cdiff.metrics.loading import find_model
from cdiff.schema import METRICS, MetricsConfig

log = logging.getLogger("cdiff")

MODELS = {"clip": "clip", "dino": "dino", "blip": "blip", "attributes": "probe"}  # scorer -> setting of its model


def open_metrics(
    conf: MetricsConfig, world: str, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> list[Scorer]:
    """The scorers that give `conf.names`, one a model: clip_t and clip_i come from one, computed in one pass.

    Models are those of `conf` (a folder, a hub id, or "pocket" for a shipped one), else those that `conf.sources` has
    for the world ("pocket" or "photo": `cfg.model.world`). No names: every metric that the world has a model for.
    No model is read before its scorer is first used; `scorer.load()` does it at once, and tells what is wrong with it.

    Args:
        dtype: of the models' weights and arithmetic; null: fp16 on a GPU, fp32 on the CPU. Features are compared in
            fp32 either way.

    Raises:
        UserError: an unknown metric, or one that no model is named for.
    """
    device = torch.device(device)
    dtype = dtype or (torch.float16 if device.type == "cuda" else torch.float32)
    wanted = [name for name in METRICS if name in conf.names or METRICS[name] in conf.names] or list(METRICS)
    if unknown := [name for name in conf.names if name not in METRICS and name not in METRICS.values()]:
        raise UserError(f"metrics.names={unknown[0]} is unknown; there are {', '.join(METRICS)} (and attributes).")
    if world != "pocket":  # it draws other individuals of the class
        if "recognized" in conf.names:
            raise UserError(f"metrics.names=recognized needs model=pocket; this is the {world} world.")
        wanted = [name for name in wanted if name != "recognized"]
    published = conf.dino_preprocessing == "dino" or (conf.dino_preprocessing == "auto" and world != "pocket")
    scorers: list[Scorer] = []
    for family in dict.fromkeys(METRICS[name] for name in wanted):
        metrics = tuple(name for name in wanted if METRICS[name] == family)
        source = getattr(conf, MODELS[family]) or conf.sources.get(world, {}).get(MODELS[family])
        if source is None and conf.names:
            raise UserError(f"metrics.names={metrics[0]} has no model in the {world} world: metrics.{MODELS[family]}=.")
        if source is None or (not conf.names and _is_missing(source, MODELS[family])):
            continue
        scorers.append(_make(family, metrics, Place(MODELS[family], source, device, dtype, conf.batch_size), published))
    return scorers


def _make(family: str, metrics: tuple[str, ...], place: Place, published: bool) -> Scorer:
    """A scorer's classes of transformers are slow to import: only what is used."""
    if family == "clip":
        from cdiff.metrics.clip import ClipScorer

        return ClipScorer(metrics, place)
    if family == "dino":
        from cdiff.metrics.dino import DinoScorer

        return DinoScorer(metrics, place, published)
    if family == "blip":
        from cdiff.metrics.blip import BlipScorer

        return BlipScorer(metrics, place)
    from cdiff.metrics.attributes import AttributeScorer

    return AttributeScorer(metrics, place)


def _is_missing(source: str, setting: str) -> bool:
    """Whether a shipped model is not in this package; said once, since its metric is left out then."""
    if source != "pocket":
        return False
    try:
        find_model(setting, source)
    except UserError as error:
        log.warning("left out of the metrics: %s", error)
        return True
    return False
