"""A base model of Stable Diffusion 1.5's layout and key names, at tiny width, made from nothing.

The vocabulary has CLIP's 49,408 entries and its order (bytes, bytes at a word's end, merges, start, end), the text
config carries the published eos_token_id 2, the scheduler is the published PNDM. Only widths differ.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

VOCABULARY = 49_408
WIDTH = 32
WORDS = (
    "a an the of in on at and with to photo picture dog cat bear bird car barn boot cup clock tea backpack wearing "
    "red blue green hat scarf crown headphones sunglasses beach snow jungle city mountain desert night grass floor "
    "far away very small zoomed close up front next pink fabric wooden cool good bad worse quality toy"
)

SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}
MODEL_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.6.0",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


@dataclass(frozen=True)
class TinyConcept:
    """The part of cdiff.concepts.Concept that the core reads."""

    token: str = "<new1>"
    class_word: str = "dog"
    initializer: str = "class_word"
    name: str = "dog"
    folder: Path | None = None


def build_sd15(folder: Path, *, prefixed: bool = False, seed: int = 0) -> Path:
    """Write the model into `folder`. `prefixed`: text encoder keys as in old files, `text_model.embeddings...`."""
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _text_encoder().save_pretrained(folder / "text_encoder")
        _vae().save_pretrained(folder / "vae")
        _unet().save_pretrained(folder / "unet")
    if prefixed:
        add_text_prefix(folder / "text_encoder" / "model.safetensors")
    write_tokenizer(folder / "tokenizer")
    _write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    _write_json(folder / "model_index.json", MODEL_INDEX)
    return folder


def add_text_prefix(file: Path) -> None:
    """Rename keys to the form transformers 4 wrote, with the position ids it kept."""
    tensors = {f"text_model.{name}": tensor for name, tensor in load_file(file).items()}
    tensors["text_model.embeddings.position_ids"] = torch.arange(77).unsqueeze(0)
    save_file(tensors, file, metadata={"format": "pt"})


def _text_encoder() -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
        hidden_act="quick_gelu",
        projection_dim=WIDTH,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
    )
    model = CLIPTextModel(config)
    with torch.no_grad():  # the published initialisation is too faint to tell two words apart at this width
        model.get_input_embeddings().weight.normal_(std=0.5)
    return model


def _vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 8, 8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
        scaling_factor=0.18215,
    )


def _unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        block_out_channels=(16, 16, 16, 16),
        layers_per_block=2,
        attention_head_dim=8,
        cross_attention_dim=WIDTH,
        norm_num_groups=8,
    )


def write_tokenizer(folder: Path, pad: str | None = None) -> None:
    """CLIP's tokenizer files; `pad`: the padding token where it is not the end-of-text token."""
    vocabulary, merges = _vocabulary()
    pad = pad or "<|endoftext|>"
    _write_json(folder / "vocab.json", vocabulary)
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    _write_json(folder / "special_tokens_map.json", {**special, "pad_token": pad})
    config = {"add_prefix_space": False, "do_lower_case": True, "errors": "replace", "model_max_length": 77}
    _write_json(
        folder / "tokenizer_config.json",
        {**config, **special, "pad_token": pad, "tokenizer_class": "CLIPTokenizer"},
    )


@functools.cache
def _vocabulary() -> tuple[dict[str, int], list[str]]:
    """49,408 entries. WORDS are one token each, "teapot" is two, other words fall into more."""
    alphabet = _byte_letters()
    entries = dict.fromkeys([*alphabet, *(letter + "</w>" for letter in alphabet)])
    ranks: dict[tuple[str, str], int] = {}

    def merge(left: str, right: str) -> None:
        if left + right not in entries:
            entries[left + right] = None
            ranks[left, right] = len(ranks)

    for word in WORDS.split():
        pieces = _split(word, ranks)
        while len(pieces) > 1:
            merge(pieces[0], pieces[1])
            pieces = [pieces[0] + pieces[1], *pieces[2:]]
    for left, right in (("te", "a"), ("p", "o"), ("po", "t</w>")):
        merge(left, right)
    for left, right in _filler_merges(alphabet[-68:]):
        if len(entries) == VOCABULARY - 2:
            break
        merge(left, right)
    names = [*entries, "<|startoftext|>", "<|endoftext|>"]
    return {name: index for index, name in enumerate(names)}, [" ".join(pair) for pair in ranks]


def _split(word: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    """The pieces byte-pair encoding leaves of a word: the earliest known merge first, until none fits."""
    pieces = [*word[:-1], word[-1] + "</w>"]
    while True:
        known = [(ranks[pair], at) for at, pair in enumerate(itertools.pairwise(pieces)) if pair in ranks]
        if not known:
            return pieces
        at = min(known)[1]
        pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]


def _filler_merges(letters: list[str]) -> Iterator[tuple[str, str]]:
    """Merges of letters that no English word has, so that they change no word."""
    yield from itertools.product(letters, letters)
    yield from ((a, b + "</w>") for a, b in itertools.product(letters, letters))
    yield from ((a + b, c) for a, b, c in itertools.product(letters, repeat=3))


def _byte_letters() -> list[str]:
    """The 256 characters that stand for bytes in GPT-2's and CLIP's byte-level vocabularies."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(byte) for byte in shown] + [chr(256 + index) for index in range(256 - len(shown))]


def _write_json(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
