"""Stage `clip`: a CLIPModel on pictures and captions; its text tower is the base's text encoder."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import PartialState
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTextModel

from cdiff.pocket.pretrain.loop import compiled, fit, part_ways, save_half
from cdiff.pocket.pretrain.pictures import CAPTIONS, RESOLUTION, Pictures
from cdiff.pocket.pretrain.tokenizer import MAX_LENGTH, build_tokenizer, check_vocabulary

MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


def build_clip(tokenizer, text: dict, vision: dict) -> CLIPModel:
    """`text` and `vision` override the sizes of the towers."""
    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "max_position_embeddings": MAX_LENGTH,
        "projection_dim": 256,
        **special,
        **text,
    }
    vision = {
        "hidden_size": 192,
        "intermediate_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 3,
        "image_size": RESOLUTION,
        "patch_size": 16,
        "projection_dim": 256,
        **vision,
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=256))


def distort(images: torch.Tensor) -> torch.Tensor:
    """Small shifts, blur and noise: what a VAE and a sampler do to a picture must not change its meaning."""
    pads = torch.randint(-6, 7, (2,)).tolist()
    images = torch.roll(F.pad(images, (6, 6, 6, 6), mode="replicate"), pads, dims=(2, 3))[..., 6:-6, 6:-6]
    kind = torch.randint(0, 3, (len(images), 1, 1, 1), device=images.device)
    small = F.interpolate(F.avg_pool2d(images, 2), scale_factor=2, mode="bilinear")
    images = torch.where(kind == 1, small, images)
    noise = torch.rand(len(images), 1, 1, 1, device=images.device) * 0.12
    return images + noise * torch.randn_like(images)


def contrastive_loss(image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """CLIP's symmetric cross entropy; pairs whose captions are the same words do not count as negatives."""
    logits = scale * image @ text.T
    same = (ids[:, None] == ids[None]).all(-1)
    same.fill_diagonal_(False)
    logits = logits.masked_fill(same, -1e4)
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def train_clip(pictures: Pictures, settings: dict, minutes: float | None, folder: Path, log) -> int:
    device = pictures.device
    torch.manual_seed(1)
    tokenizer = build_tokenizer()
    if settings.get("warm_start"):
        check_vocabulary(tokenizer, folder / "clip")
    model = (
        CLIPModel.from_pretrained(folder / "clip", dtype=torch.float32)
        if settings.get("warm_start")
        else build_clip(tokenizer, settings.get("text", {}), settings.get("vision", {}))
    )
    model = model.to(device).train()
    part_ways(1)
    size = settings["batch_size"]

    def features(images: torch.Tensor, ids: torch.Tensor):
        image = F.normalize(model.get_image_features(images).pooler_output, dim=-1)
        text = F.normalize(model.get_text_features(ids).pooler_output, dim=-1)
        return image, text

    forward = compiled(features, device, settings)

    def draw(step: int) -> tuple[torch.Tensor, ...]:
        if step % 10 == 0:
            pictures.refresh()
        index = torch.randint(len(pictures), (size,), device=device)
        variant = torch.randint(len(CAPTIONS), (size,), device=device)
        # every caption is shorter than WORDS; the causal mask makes the padding behind the end token irrelevant
        return distort(pictures.images(index)), pictures.captions(index, variant, 48, tokenizer.pad_token_id)

    def loss_of(images: torch.Tensor, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        image, text = forward(images, ids)
        with torch.autocast(device.type, enabled=False):
            image, text = image.float(), text.float()
            loss = contrastive_loss(image, text, model.logit_scale.exp().clamp(max=100), ids)
        hits = ((image @ text.T).argmax(1) == torch.arange(size, device=device)).float().mean()
        return {"loss": loss, "top1": hits}

    average, steps = fit(model, draw, loss_of, settings, minutes, log)
    if PartialState().is_main_process:
        save_clip(average, tokenizer, folder)
    return steps


def save_clip(model: CLIPModel, tokenizer, folder: Path) -> None:
    """Writes base/text_encoder, base/tokenizer and clip/, whose index points at the text tower's one file.

    The text tower's weights are shipped once: clip/model.safetensors.index.json names
    ../base/text_encoder/model.safetensors for them.
    """
    text = CLIPTextModel(model.config.text_config)
    text.load_state_dict(
        {k.removeprefix("text_model."): v for k, v in model.state_dict().items() if k.startswith("text_model.")}
    )
    save_half(text, folder / "base" / "text_encoder")
    state = {k: v.detach().half().cpu().contiguous() for k, v in model.state_dict().items()}
    tower = {k: v for k, v in state.items() if k.startswith("text_model.") and not k.endswith("position_ids")}
    rest = {k: v for k, v in state.items() if not k.startswith("text_model.") and not k.endswith("position_ids")}
    shared = folder / "base" / "text_encoder" / "model.safetensors"
    save_file(tower, shared, metadata={"format": "pt"})
    clip = folder / "clip"
    clip.mkdir(parents=True, exist_ok=True)
    save_file(rest, clip / "vision.safetensors", metadata={"format": "pt"})
    where = dict.fromkeys(tower, "../base/text_encoder/model.safetensors") | dict.fromkeys(rest, "vision.safetensors")
    total = sum(v.numel() * 2 for v in state.values())
    (clip / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": where}, indent=1)
    )
    config = json.loads(model.config.to_json_string(use_diff=False))
    (clip / "config.json").write_text(
        json.dumps(config | {"dtype": "float32", "architectures": ["CLIPModel"]}, indent=1) + "\n"
    )
    for place in (clip, folder / "base" / "tokenizer"):
        tokenizer.save_pretrained(place)
    CLIPImageProcessor(
        size={"shortest_edge": RESOLUTION},
        crop_size={"height": RESOLUTION, "width": RESOLUTION},
        image_mean=MEAN,
        image_std=STD,
    ).save_pretrained(clip)
    for file in (shared, clip / "vision.safetensors"):
        file.chmod(0o644)
    assert set(load_file(shared)) == set(tower)
