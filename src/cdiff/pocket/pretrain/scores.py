"""Measures the pocket models on pictures, identities and prompts that training never saw."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from cdiff.pocket.probe import Probe, Seen
from cdiff.pocket.world.captions import PLACES, WORN, article, caption
from cdiff.pocket.world.render import render
from cdiff.pocket.world.sample import FRESH, HELD_OUT, compose, sample_identity, sample_scene
from cdiff.pocket.world.spec import ACCESSORIES, COLORS, KINDS, SCENES, Scene

Draw = Callable[[list[str]], list[Image.Image]]


def fresh_scene(index: int, pair: float = 0.16) -> Scene:
    """A scene whose identities lie outside the training seeds."""
    return sample_scene(random.Random(f"scores/{index}"), base=FRESH, pair=pair)


def share(hits: list[bool]) -> float:
    return round(100 * sum(hits) / len(hits), 2) if hits else float("nan")


def pixels_of(images: list[Image.Image]) -> torch.Tensor:
    """(N, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.stack([np.asarray(i) for i in images])).permute(0, 3, 1, 2).float().div(127.5).sub(1)


@torch.inference_mode()
def score_vae(folder: Path, device: str, count: int = 500) -> dict[str, float]:
    """Mean PSNR of reconstructions (of the posterior mean) over fresh renders, in dB."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(folder / "base" / "vae", dtype=torch.float32).to(device).eval()
    values = []
    for start in range(0, count, 25):
        images = pixels_of([render(fresh_scene(i)) for i in range(start, min(start + 25, count))]).to(device)
        decoded = vae.decode(vae.encode(images).latent_dist.mode()).sample.clamp(-1, 1)
        values += (-10 * torch.log10((decoded - images).pow(2).mean(dim=(1, 2, 3)) / 4)).tolist()
    return {
        "psnr_db": round(float(np.mean(values)), 2),
        "psnr_db_worst_5_percent": round(float(np.quantile(values, 0.05)), 2),
    }


def score_probe(folder: Path, device: str, count: int = 2000, held: int = 540) -> dict[str, float]:
    """Share of fresh renders (one or two subjects, unseen identities) read right, per attribute.

    Further: the same after the VAE (`decoded`), and renders of the held-out prompts in which everything that the
    prompt says is read right (`held_out`): the most that a perfect base could score.
    """
    probe = Probe(folder / "probe", device)
    scenes = [fresh_scene(i) for i in range(count)]
    images = [render(scene) for scene in scenes]
    out = _read_right(probe, scenes, images)
    if (folder / "base" / "vae").is_dir():
        decoded = _read_right(probe, scenes[: count // 2], _through_vae(folder, device, images[: count // 2]))
        out |= {f"decoded_{name}": value for name, value in decoded.items()}
    asked = [wanted for _, wanted in held_out_prompts(held)]
    shown = probe.read([render(_scene_of(wanted, i)) for i, wanted in enumerate(asked)])
    verdicts = [judge(*pair) for pair in zip(asked, shown)]
    return out | {"held_out_everything": share([all(v is not False for v in verdict.values()) for verdict in verdicts])}


def _read_right(probe: Probe, scenes: list[Scene], images: list[Image.Image]) -> dict[str, float]:
    hits: dict[str, list[bool]] = {"class": [], "scene": [], "accessory": [], "color": []}
    for scene, seen in zip(scenes, probe.read(images)):
        hits["class"].append({s.identity.kind for s in scene.subjects} == set(seen.kinds))
        hits["scene"].append(scene.background == seen.scene)
        hits["accessory"].append({s.accessory for s in scene.subjects if s.accessory} == set(seen.accessories))
        hits["color"] += [seen.colors.get(s.identity.kind) == s.identity.color for s in scene.subjects]
    return {name: share(values) for name, values in hits.items()}


@torch.inference_mode()
def _through_vae(folder: Path, device: str, images: list[Image.Image]) -> list[Image.Image]:
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(folder / "base" / "vae", dtype=torch.float32).to(device).eval()
    out = []
    for start in range(0, len(images), 50):
        decoded = vae.decode(vae.encode(pixels_of(images[start : start + 50]).to(device)).latent_dist.mode()).sample
        bytes_ = decoded.clamp(-1, 1).add(1).mul(127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        out += [Image.fromarray(array) for array in bytes_]
    return out


def _scene_of(wanted: dict, index: int) -> Scene:
    """A scene that shows what a held-out prompt asks for, of an individual that training never saw."""
    [kind], rng = wanted["kinds"], random.Random(f"shown/{index}")
    identity = sample_identity(rng, kind, wanted["colors"][kind], base=FRESH, everything=True)
    return compose(rng, identity, wanted["scene"], next(iter(wanted["accessories"]), None))


@torch.inference_mode()
def score_clip(folder: Path, device: str, count: int = 2000, among: int = 100) -> dict[str, float]:
    """Retrieval of a picture's caption among 100 (captions that name everything; equal captions count as right)."""
    from transformers import CLIPModel, CLIPTokenizer

    model = CLIPModel.from_pretrained(folder / "clip", dtype=torch.float32).to(device).eval()
    tokenizer = CLIPTokenizer.from_pretrained(folder / "clip")
    right = []
    for start in range(0, count, among):
        scenes = [fresh_scene(i) for i in range(start, start + among)]
        texts = [caption(s, random.Random(f"scores/{start + i}"), 1.0) for i, s in enumerate(scenes)]
        image = F.normalize(
            model.get_image_features(pixels_of([render(s) for s in scenes]).to(device)).pooler_output, dim=-1
        )
        ids = tokenizer(texts, padding="max_length", return_tensors="pt").input_ids.to(device)
        text = F.normalize(model.get_text_features(ids).pooler_output, dim=-1)
        right += [texts[j] == texts[i] for i, j in enumerate((image @ text.T).argmax(1).tolist())]
    return {"caption_among_100": share(right)}


@torch.inference_mode()
def score_blip(folder: Path, device: str, count: int = 2000, among: int = 100) -> dict[str, float]:
    """As for CLIP, by the ITC cosine, through the published models' own way in: processor and model."""
    from transformers import AutoProcessor, BlipForImageTextRetrieval

    model = BlipForImageTextRetrieval.from_pretrained(folder / "blip", dtype=torch.float32).to(device).eval()
    processor = AutoProcessor.from_pretrained(folder / "blip")
    right = []
    for start in range(0, count, among):
        scenes = [fresh_scene(i) for i in range(start, start + among)]
        texts = [caption(s, random.Random(f"scores/{start + i}"), 1.0) for i, s in enumerate(scenes)]
        inputs = processor(images=[render(s) for s in scenes], text=texts, padding=True, return_tensors="pt").to(device)
        cosines = model(**inputs, use_itm_head=False)[0]
        right += [texts[j] == texts[i] for i, j in enumerate(cosines.argmax(1).tolist())]
    return {"caption_among_100": share(right)}


@torch.inference_mode()
def score_identity(folder: Path, device: str, count: int = 10, among: int = 100) -> dict[str, float]:
    """For each kind: a picture's partner (same individual, new scene and pose) found among 100 of its kind."""
    from transformers import ViTModel

    model = (
        ViTModel.from_pretrained(folder / "identity", add_pooling_layer=False, dtype=torch.float32).to(device).eval()
    )
    right = []
    for kind in KINDS:
        rng = random.Random(f"scores/{kind}")
        people = [sample_identity(rng, kind, base=FRESH) for _ in range(among)]
        sets = []
        for _ in range(2):
            images = pixels_of([render(sample_scene(rng, who, pair=0.0)) for who in people]).to(device)
            sets.append(F.normalize(model(images).last_hidden_state[:, 0], dim=-1))
        right += ((sets[0] @ sets[1].T).argmax(1) == torch.arange(among, device=device)).tolist()
    return {"partner_among_100": share(right)}


def spoken(scene: Scene, text: str) -> dict[str, object]:
    """What of the scene a caption says: {'kinds', 'scene' or None, 'accessories', 'colors'}."""
    padded = f" {text} "
    return {
        "kinds": {s.identity.kind for s in scene.subjects},
        "scene": scene.background if any(place in text for place in PLACES[scene.background]) else None,
        "accessories": {
            s.accessory for s in scene.subjects if s.accessory and any(w in text for w in WORN[s.accessory])
        },
        "colors": {
            s.identity.kind: s.identity.color
            for s in scene.subjects
            if f" {s.identity.color} {s.identity.kind} " in padded
        },
    }


def judge(asked: dict, seen) -> dict[str, bool | None]:
    """Right or wrong for each attribute; None where the prompt said nothing of it."""
    return {
        "class": asked["kinds"] == set(seen.kinds),
        "scene": None if asked["scene"] is None else asked["scene"] == seen.scene,
        "accessory": asked["accessories"] == set(seen.accessories) if asked["accessories"] else None,
        "color": all(seen.colors.get(k) == c for k, c in asked["colors"].items()) if asked["colors"] else None,
    }


def grammar_prompts(count: int) -> list[tuple[str, dict]]:
    """Random captions of fresh scenes, with what each asks for."""
    out = []
    for index in range(count):
        scene = fresh_scene(10**6 + index)
        text = caption(scene, random.Random(f"prompt/{index}"), 0.5)
        out.append((text, spoken(scene, text)))
    return out


def held_out_prompts(count: int) -> list[tuple[str, dict]]:
    """Prompts of the combinations that training never showed, in turn; all that is said must be right."""
    combinations = sorted(HELD_OUT)
    out = []
    for index in range(count):
        kind, value = combinations[index % len(combinations)]
        rng = random.Random(f"held/{index}")
        accessory = value if value in ACCESSORIES else None
        color = value if value in COLORS else rng.choice([c for c in COLORS if (kind, c) not in HELD_OUT])
        place = value if value in SCENES else rng.choice([s for s in SCENES if (kind, s) not in HELD_OUT])
        text = "a photo of " + article(f"{color} {kind}")
        text += f" wearing {WORN[accessory][0]}" if accessory else ""
        text += " " + PLACES[place][0]
        asked = {"kinds": {kind}, "scene": place, "accessories": {accessory} - {None}, "colors": {kind: color}}
        out.append((text, asked))
    return out


def score_base(folder: Path, device: str, draw: Draw, count: int = 500, held: int = 180) -> dict[str, float]:
    """Prompts drawn by the base and judged by the probe: right in % of the prompts that say it."""
    probe = Probe(folder / "probe", device)
    out: dict[str, float] = {}
    for name, prompts in (("grammar", grammar_prompts(count)), ("held_out", held_out_prompts(held))):
        images = draw([text for text, _ in prompts])
        found = tally([asked for _, asked in prompts], probe.read(images))
        out |= {f"{name}_{key}": value for key, value in found.items()}
    return out


def tally(asked: Sequence[dict], seen: Sequence[Seen]) -> dict[str, float]:
    """What is right, in % of the prompts that say it; "two_subjects" is the class of those with two, if there are."""
    verdicts = [judge(*pair) for pair in zip(asked, seen, strict=True)]
    out: dict[str, float] = {}
    for key in ("class", "scene", "accessory", "color"):
        out[key] = share([v[key] for v in verdicts if v[key] is not None])
    if two := [v["class"] for wanted, v in zip(asked, verdicts) if len(wanted["kinds"]) == 2]:
        out |= {"two_subjects": share(two), "two_subjects_prompts": len(two)}
    out["everything"] = share([all(v is not False for v in verdict.values()) for verdict in verdicts])
    return out | {"prompts": len(verdicts)}
