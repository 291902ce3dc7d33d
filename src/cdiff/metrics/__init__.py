"""Metrics: a scorer takes images and prompts and gives one number an image. One file a family.

    scorers = open_metrics(cfg.metrics, cfg.model.world, device)       # models load at the first use, each once
    reference = prepare_references(scorers, read_folder(folder))       # features of the concept's pictures, cached
    for scored in score_items(scorers, items, cfg.metrics.batch_size): # streamed, in order, memory constant
        scored.item.key, scored.values, scored.fault

| scorer | metrics | model |
| --- | --- | --- |
| clip | clip_t: cosine(image, prompt); clip_i: mean cosine with every reference picture | a CLIPModel |
| dino | dino_i: mean cosine of CLS features with every reference picture; recognized (pocket) | a ViTModel |
| blip | blip2_t: the ITC head's cosine(image, prompt) | BLIP or BLIP-2 with its retrieval head |
| attributes | attr_class, _scene, _accessory, _color: 1 right, 0 wrong, NaN not asked for | the pocket probe |

The new token is dropped from a prompt before it comes here. Cosines are plain, not times 2.5 or 100.
"""

from __future__ import annotations

from cdiff.metrics.interface import Item, Reference, Scored, Scorer
from cdiff.metrics.opening import open_metrics
from cdiff.metrics.references import prepare_references
from cdiff.metrics.stream import iterate_images, score_items
from cdiff.schema import METRICS

__all__ = [
    "METRICS",
    "Item",
    "Reference",
    "Scored",
    "Scorer",
    "iterate_images",
    "open_metrics",
    "prepare_references",
    "score_items",
]
