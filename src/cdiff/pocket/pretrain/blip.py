"""Stage `blip`: a BlipForImageTextRetrieval, whose ITC cosine scores how well a caption fits a picture.

Trained with the contrastive loss (ITC) and a light matching loss (ITM) on hard negatives of the batch, as in BLIP
(2201.12086, section 3.2), without its momentum queue. Its text side reads the ids of the pocket's CLIP tokenizer, which
BlipProcessor takes as it takes BERT's: the start token stands where BERT has [CLS].
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import PartialState
from transformers import BlipConfig, BlipForImageTextRetrieval, BlipImageProcessor, BlipProcessor

from cdiff.pocket.pretrain.clip import MEAN, STD, contrastive_loss, distort
from cdiff.pocket.pretrain.loop import compiled, fit, part_ways, save_half
from cdiff.pocket.pretrain.pictures import CAPTIONS, RESOLUTION, WORDS, Pictures
from cdiff.pocket.pretrain.tokenizer import MAX_LENGTH, build_tokenizer


def build_blip(tokenizer, text: dict, vision: dict) -> BlipForImageTextRetrieval:
    """About 1.55 M parameters; `text` and `vision` override the sizes of the towers."""
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": MAX_LENGTH,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "sep_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **text,
    }
    vision = {
        "hidden_size": 144,
        "intermediate_size": 288,
        "num_hidden_layers": 5,
        "num_attention_heads": 3,
        "image_size": RESOLUTION,
        "patch_size": 16,
        **vision,
    }
    return BlipForImageTextRetrieval(BlipConfig(text_config=text, vision_config=vision, image_text_hidden_size=128))


class Scaled(torch.nn.Module):
    """The model and the learned scale of its cosines, which is needed in training alone."""

    def __init__(self, model: BlipForImageTextRetrieval):
        super().__init__()
        self.model = model
        self.log_scale = torch.nn.Parameter(torch.tensor(2.66))


def mask_of(ids: torch.Tensor, end: int) -> torch.Tensor:
    """The attention mask (B, L) that a tokenizer gives: up to the first end token, which also pads."""
    before = ((ids == end).cumsum(-1) - (ids == end).long()) == 0
    return before.long()


def hard_negatives(similarity: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
    """For each row of a (N, N) similarity another column, likelier the more alike (eq. in BLIP's section 3.2)."""
    share = similarity.softmax(-1).masked_fill(same, 0.0) + 1e-9 * ~same + 1e-20
    # the largest of share / Exp(1) falls on each column with its share; multinomial would wait for the device
    return (share / torch.empty_like(share).exponential_()).argmax(-1)


def train_blip(pictures: Pictures, settings: dict, minutes: float | None, folder: Path, log) -> int:
    device = pictures.device
    torch.manual_seed(6)
    tokenizer = build_tokenizer()
    holder = Scaled(build_blip(tokenizer, settings.get("text", {}), settings.get("vision", {}))).to(device).train()
    part_ways(6)
    model, size, few = holder.model, settings["batch_size"], settings["matched"]

    def features(images: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor):
        seen = model.vision_model(images).last_hidden_state
        read = model.text_encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        image = F.normalize(model.vision_proj(seen[:, 0]), dim=-1)
        return seen, image, F.normalize(model.text_proj(read[:, 0]), dim=-1)

    def match(seen: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor):
        there = torch.ones(seen.shape[:2], dtype=torch.long, device=seen.device)
        read = model.text_encoder(
            input_ids=ids, attention_mask=mask, encoder_hidden_states=seen, encoder_attention_mask=there
        )
        return model.itm_head(read.last_hidden_state[:, 0])

    forward, pairs = compiled(features, device, settings), compiled(match, device, settings)
    target = torch.tensor([1] * few + [0] * 2 * few, device=device)

    def matching_loss(seen: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor, cosines: torch.Tensor):
        """ITM on the first `few` pairs: each as it is, with a wrong caption, with a wrong picture."""
        seen, ids, mask = seen[:few], ids[:few], mask[:few]
        same = (ids[:, None] == ids[None]).all(-1)
        text = hard_negatives(cosines[:few, :few], same)
        image = hard_negatives(cosines[:few, :few].T, same)
        every = torch.arange(few, device=device)
        a, b = torch.cat([every, every, image]), torch.cat([every, text, every])
        return F.cross_entropy(pairs(seen[a], ids[b], mask[b]).float(), target)

    def draw(step: int) -> tuple[torch.Tensor, ...]:
        if step % 10 == 0:
            pictures.refresh()
        index = torch.randint(len(pictures), (size,), device=device)
        variant = torch.randint(len(CAPTIONS), (size,), device=device)
        return distort(pictures.images(index)), pictures.captions(index, variant, WORDS, tokenizer.pad_token_id)

    def loss_of(images: torch.Tensor, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        mask = mask_of(ids, tokenizer.eos_token_id)
        seen, image, text = forward(images, ids, mask)
        with torch.autocast(device.type, enabled=False):
            image, text = image.float(), text.float()
            scale = holder.log_scale.exp().clamp(max=100)
            itc = contrastive_loss(image, text, scale, ids)
            cosines = (scale * image @ text.T).detach()
        itm = matching_loss(seen, ids, mask, cosines)
        hits = (cosines.argmax(1) == torch.arange(size, device=device)).float().mean()
        return {"loss": itc + settings["itm_weight"] * itm, "itc": itc, "itm": itm, "top1": hits}

    average, steps = fit(holder, draw, loss_of, settings, minutes, log)
    if PartialState().is_main_process:
        save_blip(average.model, tokenizer, folder / "blip")
    return steps


def save_blip(model: BlipForImageTextRetrieval, tokenizer, folder: Path) -> None:
    """The folder that AutoProcessor and BlipForImageTextRetrieval open, like the published ones."""
    save_half(model, folder)
    image_processor = BlipImageProcessor(
        size={"height": RESOLUTION, "width": RESOLUTION}, image_mean=list(MEAN), image_std=list(STD)
    )
    BlipProcessor(image_processor, tokenizer).save_pretrained(folder)
    image_processor.save_pretrained(folder)
