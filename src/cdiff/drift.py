"""How far a new token drifts from its class while it trains: in text-feature space and as an embedding.

ClassDiffusion (arXiv 2405.17532) explains the loss of composition by this drift: the feature of "<new1> dog" leaves the
place of "dog", and with it the phrases that the model knows to combine. Nothing here changes the training.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cdiff.runs import PHRASES_FILE

if TYPE_CHECKING:
    from cdiff.concepts import Concept
    from cdiff.models import Base
    from cdiff.tokens import PromptEncoder

# About the seventy of the paper's figure: colours, sizes, looks, moods, materials. The pocket models know half of them;
# the others are spelled out for them, and lie farther away.
ADJECTIVES = (
    "red green blue yellow orange pink purple brown black white grey golden dark bright shiny pale "
    "big small little tiny large huge tall short fat thin long round "
    "old young new clean dirty wet dry fancy plain strange weird "
    "cute nice lovely beautiful pretty ugly funny happy sad angry friendly calm sweet good bad cool "
    "sleeping running sitting standing walking flying playing hopping "
    "wooden sandy snowy stuffed striped spotted fluffy furry tropical"
).split()


def class_row(base: Base, class_word: str) -> Tensor:
    """(D,) fp32: the mean of the class word's embeddings; of SDXL's two text encoders one after the other, as a new
    token's row."""
    parts = []
    for tokenizer, text_encoder in base.encoders:
        table = text_encoder.get_input_embeddings().weight.detach()
        ids = tokenizer(class_word, add_special_tokens=False).input_ids
        parts.append(table[torch.tensor(ids, device=table.device)].float().mean(dim=0))
    return torch.cat(parts)


class Tracker(Protocol):
    """Where the numbers go (cdiff.tracking)."""

    def log(self, values: dict[str, float], step: int) -> None: ...


class DriftProbe:
    """Called with a step, logs where the tokens are: `drift/...`, for several concepts with the concept's name behind.

    | name | what |
    | --- | --- |
    | drift/text_distance | 1 - cosine of the end-of-text features of "<new1> dog" and "dog" |
    | drift/token_norm | length of the token's embedding |
    | drift/class_norm | length of the class word's embedding, for comparison |
    | drift/class_cosine | cosine of the token's embedding with the class word's |
    """

    def __init__(
        self, base: Base, rows: Tensor, concepts: Sequence[Concept], encoder: PromptEncoder, tracker: Tracker
    ) -> None:
        """Remembers the class's side as it is now: make it before anything trains. rows (concepts, D)."""
        self.rows, self.concepts, self.encoder, self.tracker = rows, list(concepts), encoder, tracker
        self.dtype = base.dtype
        self.phrases = [f"{concept.token} {concept.class_word}" for concept in concepts]
        self.class_features = self._features([concept.class_word for concept in concepts])
        self.class_rows = torch.stack([class_row(base, concept.class_word) for concept in concepts])
        self.path: list[tuple[int, np.ndarray]] = []  # (step, features of the concept phrases)

    @torch.no_grad()
    def __call__(self, step: int) -> None:
        features = self._features(self.phrases)
        rows = self.rows.detach().float()
        found = {
            "text_distance": 1 - F.cosine_similarity(features, self.class_features),
            "token_norm": rows.norm(dim=-1),
            "class_norm": self.class_rows.norm(dim=-1),
            "class_cosine": F.cosine_similarity(rows, self.class_rows),
        }
        values = {}
        for name, each in found.items():
            for concept, value in zip(self.concepts, each.tolist(), strict=True):
                values[f"drift/{name}" + (f"/{concept.name}" if len(self.concepts) > 1 else "")] = value
        self.tracker.log(values, step)
        self.path.append((step, features.cpu().numpy()))

    def save(self, folder: Path, adjectives: Sequence[str] = ADJECTIVES) -> Path:
        """Write what a projection of the phrases needs: phrases.npz in `folder`.

        `concepts` (C), `class_words` (C); `words` (P + 1), the adjectives after an empty one, the class alone;
        `class_features` (C, P + 1, D) of "[adjective] dog" in the text encoder as it was; `steps` (S) and
        `features` (S, C, D) of "<new1> dog" at each probed step. float16, as a projection needs no more.
        """
        words = ["", *adjectives]
        of_class = [
            self._features([f"{word} {concept.class_word}".strip() for word in words]).cpu().numpy()
            for concept in self.concepts
        ]
        folder.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(
            folder / PHRASES_FILE,
            concepts=np.array([concept.name for concept in self.concepts]),
            class_words=np.array([concept.class_word for concept in self.concepts]),
            words=np.array(words),
            class_features=np.stack(of_class).astype(np.float16),
            steps=np.array([step for step, _ in self.path]),
            features=np.stack([features for _, features in self.path]).astype(np.float16),
        )
        return folder / PHRASES_FILE

    @torch.no_grad()
    def _features(self, prompts: list[str]) -> Tensor:
        """(B, D) fp32, at the end-of-text token."""
        half = self.dtype != torch.float32  # a text encoder that trains is fp32 around a table in half precision
        with torch.autocast(self.rows.device.type, self.dtype) if half else nullcontext():
            return self.encoder.feature(self.encoder.encode_sample(prompts)).float()
