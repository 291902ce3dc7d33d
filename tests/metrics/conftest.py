"""Small random models of the published classes, in folders as they are published, and images of awkward sizes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from metric_models import LOUD, NARROW, SIDE, SIZES, WORDS, picture
from PIL import Image
from transformers import (
    BertTokenizer,
    Blip2Config,
    Blip2ForImageTextRetrieval,
    BlipConfig,
    BlipForImageTextRetrieval,
    CLIPConfig,
    CLIPModel,
    ViTConfig,
    ViTModel,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """No feature of another test, in memory or on disk."""
    from cdiff.metrics import references

    monkeypatch.setenv("CDIFF_CACHE", str(tmp_path / "cache"))
    references._memory.clear()


@pytest.fixture(scope="session")
def images() -> list[Image.Image]:
    """RGB of each of SIZES, then greyscale, palette, RGBA and very wide."""
    made = [picture(number, *size) for number, size in enumerate(SIZES)]
    return [
        *made,
        picture(20, 50, 40).convert("L"),
        picture(21, 45, 45).convert("P"),
        picture(22, 64, 36).convert("RGBA"),
        picture(23, 640, 16),
    ]


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory, sd15_folder) -> Path:
    """CLIP's vocabulary, its end token found as in the published files (eos_token_id 2), 16 positions of text."""
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    text = {**NARROW, **LOUD, "vocab_size": 49_408, "max_position_embeddings": 16, "eos_token_id": 2}
    vision = {**NARROW, **LOUD, "image_size": SIDE, "patch_size": 8}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)).eval()
    with torch.no_grad():
        model.text_model.embeddings.token_embedding.weight.normal_(std=0.5)
    model.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}).save_pretrained(
        folder
    )
    for file in (sd15_folder / "tokenizer").iterdir():
        shutil.copy(file, folder)
    return folder


@pytest.fixture(scope="session")
def dino_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dino")
    torch.manual_seed(1)
    config = ViTConfig(**NARROW, image_size=56, patch_size=8, initializer_range=0.3)
    ViTModel(config).eval().save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 56, "width": 56}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def blip_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("blip")
    torch.manual_seed(2)
    text = {**NARROW, "vocab_size": len(WORDS), "encoder_hidden_size": 32, "max_position_embeddings": 12,
            "initializer_range": 0.3, "pad_token_id": 0, "projection_dim": 32}  # fmt: skip
    vision = {**NARROW, "image_size": SIDE, "patch_size": 8, "initializer_range": 0.3}
    config = BlipConfig(text_config=text, vision_config=vision, image_text_hidden_size=20, initializer_range=0.3)
    BlipForImageTextRetrieval(config).eval().save_pretrained(folder)
    return with_bert_processor(folder)


@pytest.fixture(scope="session")
def blip2_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("blip2")
    torch.manual_seed(3)
    former = {**NARROW, "vocab_size": len(WORDS), "encoder_hidden_size": 32, "max_position_embeddings": 12,
              "initializer_range": 0.3, "pad_token_id": 0, "cross_attention_frequency": 1,
              "use_qformer_text_input": True}  # fmt: skip
    vision = {**NARROW, "image_size": SIDE, "patch_size": 8, "initializer_range": 0.3}
    config = Blip2Config(
        vision_config=vision,
        qformer_config=former,
        num_query_tokens=4,
        image_text_hidden_size=20,
        initializer_range=0.3,
    )
    model = Blip2ForImageTextRetrieval(config).eval()
    with torch.no_grad():
        model.query_tokens.normal_()
    model.save_pretrained(folder)
    return with_bert_processor(folder)


def with_bert_processor(folder: Path) -> Path:
    BertTokenizer(vocab={word: number for number, word in enumerate(WORDS)}).save_pretrained(folder)
    BlipImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return folder
