"""An individual as a word: what lets a caption point at one dog among all dogs while the UNet learns.

Captions name a kind, a colour, an accessory; nothing in them tells one brown dog from another. A base that learned from
them alone has no use for finer meanings of a word, and personalisation then teaches it to read instead of telling it
what to draw. Large bases learned from texts that name breeds, people and patterns. In their place, some captions of the
UNet's training get one word more before the kind, whose embedding is a linear map of what the identity model sees in
another picture of the same individual. The map is trained with the UNet, and no part of the base.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizer, ViTModel

from cdiff.pocket.pretrain.pictures import GROUP
from cdiff.pocket.world.spec import COLORS, KINDS

FILE = "individuals.safetensors"
KIND, COLOR, SECOND_KIND = 1, 2, 4  # columns of a picture's labels


class Individuals(torch.nn.Module):
    """Features of an individual (B, D) -> embeddings of a word (B, width), as long as those of other words."""

    def __init__(self, features: int, width: int, length: float):
        super().__init__()
        self.project, self.length = torch.nn.Linear(features, width), length

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.length * F.normalize(self.project(features).float(), dim=-1)

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_file({k: v.half().contiguous().cpu() for k, v in self.state_dict().items()}, folder / FILE)

    def open(self, folder: Path) -> None:
        """Takes the weights of an earlier training, where there are some."""
        if (folder / FILE).exists():
            self.load_state_dict({k: v.float() for k, v in load_file(folder / FILE).items()})


def open_individuals(weights: Path, text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer) -> Individuals:
    """A map from the features of weights/identity to words of weights/base, as it was trained last or from nothing."""
    features = json.loads((weights / "identity" / "config.json").read_text())["hidden_size"]
    rows = text_encoder.get_input_embeddings().weight[word_ids(tokenizer, KINDS)]
    made = Individuals(features, rows.shape[1], rows.norm(dim=-1).mean().item())
    made.open(weights / "training")
    return made


@torch.no_grad()
def features_of(model: ViTModel, images: torch.Tensor) -> torch.Tensor:
    """Normalised CLS features (B, D) of images (B, 3, H, W) in [-1, 1], as the identity model takes them."""
    return F.normalize(model(pixel_values=images).last_hidden_state[:, 0].float(), dim=-1)


def word_ids(tokenizer: CLIPTokenizer, words: tuple[str, ...]) -> torch.Tensor:
    """The token of each word (N,); every word of the captions is one token."""
    return torch.tensor([tokenizer(word, add_special_tokens=False).input_ids[0] for word in words])


class Naming:
    """Puts the additional word into captions, before the first kind that they name."""

    def __init__(self, tokenizer: CLIPTokenizer, device: torch.device):
        self.kinds = word_ids(tokenizer, KINDS).to(device)
        self.colors = word_ids(tokenizer, COLORS).to(device)

    def place(self, ids: torch.Tensor) -> torch.Tensor:
        """Position (B,) of the first kind in captions (B, L); L where there is none."""
        found = torch.isin(ids, self.kinds)
        return torch.where(found.any(1), found.int().argmax(1), ids.shape[1])

    def partners(self, index: torch.Tensor) -> torch.Tensor:
        """Another picture of the same group for each (B,)."""
        step = torch.randint(1, GROUP, index.shape, device=index.device)
        return index - index % GROUP + (index % GROUP + step) % GROUP

    def fits(self, ids: torch.Tensor, own: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """Whether (B,) the partner's picture, by the labels (B, 7) of both, shows what the caption is about, and that
        alone. If it has another colour, the caption must name the right one."""
        place = self.place(ids)
        before = torch.arange(ids.shape[1], device=ids.device) < place[:, None]
        color = self.colors[own[:, COLOR].long()]
        named = ((ids == color[:, None]) & before).any(1)
        same = own[:, KIND] == other[:, KIND]
        alone = other[:, SECOND_KIND] < 0
        return (place < ids.shape[1]) & same & alone & (named | (own[:, COLOR] == other[:, COLOR]))

    def insert(self, ids: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Captions (B, L) with one place more before the kind where `wanted` (B,), and a mask (B, L) of that place.

        The last token is dropped, which is padding in captions of these lengths; the new place repeats the kind's token
        until it is given its embedding.
        """
        positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        place = torch.where(wanted, self.place(ids), ids.shape[1])[:, None]
        moved = ids.gather(1, positions - (positions > place).long())
        return moved, positions == place


def read_text(text_encoder: CLIPTextModel, ids: torch.Tensor, mask: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    """Last hidden states (B, L, width) of captions (B, L) whose masked places hold `words` (B, width)."""
    embedded = text_encoder.get_input_embeddings()(ids)
    embedded = torch.where(mask[..., None], words[:, None].to(embedded.dtype), embedded)
    states = text_encoder.embeddings(inputs_embeds=embedded)
    states = text_encoder.encoder(inputs_embeds=states, attention_mask=None, is_causal=True).last_hidden_state
    return text_encoder.final_layer_norm(states)
