"""Preprocessing against transformers' own image processors, their Pillow versions."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from metric_models import picture
from PIL import Image
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from cdiff.errors import UserError
from cdiff.metrics.preprocess import CLIP, STANDARD, Preprocess, dino_preprocess, read_preprocess

CPU = torch.device("cpu")
ODD = ((512, 512), (37, 53), (301, 224), (225, 224), (90, 700), (900, 17), (16, 16), (223, 225))
PROCESSORS = {
    "clip": (CLIPImageProcessorPil(), Preprocess(224, (224, 224), 3, *CLIP), False, 224),
    "clip pocket": (
        CLIPImageProcessorPil(size={"shortest_edge": 128}, crop_size=128, image_mean=[0.5] * 3, image_std=[0.5] * 3),
        Preprocess(224, (224, 224), 3, *CLIP),
        False,
        128,
    ),
    "clip larger crop": (
        CLIPImageProcessorPil(size={"shortest_edge": 90}, crop_size=128),
        Preprocess(224, (224, 224), 3, *CLIP),
        False,
        128,
    ),
    "vit": (ViTImageProcessorPil(), Preprocess((224, 224), None, 2, *STANDARD), True, 224),
    "blip": (BlipImageProcessorPil(), Preprocess((384, 384), None, 3, *CLIP), True, 384),
    "vit cropped": (
        ViTImageProcessorPil(size={"shortest_edge": 64}, resample=3, do_center_crop=True, crop_size=56),
        Preprocess((224, 224), None, 2, *STANDARD),
        True,
        56,
    ),
    "raw": (
        CLIPImageProcessorPil(do_rescale=False, do_normalize=False),
        Preprocess(224, (224, 224), 3, *CLIP),
        False,
        224,
    ),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_equal_to_the_published_processor(name, tmp_path):
    processor, default, square, side = PROCESSORS[name]
    processor.save_pretrained(tmp_path)
    ours = read_preprocess(tmp_path, side, default, square)
    pictures = [picture(number, *size) for number, size in enumerate(ODD)]
    pictures += [picture(30, 70, 41).convert("L").convert("RGB"), picture(31, 2000, 30)]
    for image in pictures:
        theirs = processor(image, return_tensors="pt").pixel_values
        mine = ours.normalize([ours.prepare(image)], CPU, torch.float32)
        assert mine.shape == theirs.shape
        torch.testing.assert_close(mine, theirs.float(), atol=1e-5, rtol=1e-6)


def test_the_published_numbers_hold_where_the_folder_has_no_file(tmp_path):
    default = Preprocess(224, (224, 224), 3, *CLIP)
    assert read_preprocess(tmp_path, 224, default, square=False) == default
    (tmp_path / "preprocessor_config.json").write_text('{"size": 224, "crop_size": 224, "resample": 3}')
    assert read_preprocess(tmp_path, 224, default, square=False) == default  # as openai/clip-vit-base-patch32 has it
    (tmp_path / "preprocessor_config.json").write_text('{"size": 384}')
    blip = Preprocess((384, 384), None, 3, *CLIP)
    assert read_preprocess(tmp_path, 384, blip, square=True) == blip


def test_a_processor_inside_processor_config(tmp_path):
    CLIPImageProcessorPil(image_mean=[0.1, 0.2, 0.3]).save_pretrained(tmp_path)
    inside = json.loads((tmp_path / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").unlink()
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": inside}))
    assert read_preprocess(tmp_path, 224, Preprocess(224, (224, 224), 3, *CLIP), False).mean == (0.1, 0.2, 0.3)


@pytest.mark.parametrize(
    "text", ["{", '{"size": {"longest_edge": 5}}', '{"size": "big"}', '{"size": 100, "crop_size": 99}']
)
def test_a_file_that_says_something_else_is_named(text, tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(text)
    with pytest.raises(UserError, match=r"preprocessor_config\.json"):
        read_preprocess(tmp_path, 224, Preprocess(224, (224, 224), 3, *CLIP), False)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "CMYK", "I;16"])
def test_pictures_of_any_mode(mode):
    image = picture(1, 60, 40).convert("L").point(lambda x: x) if mode == "I;16" else picture(1, 60, 40)
    prepared = dino_preprocess(56).prepare(image.convert(mode))
    assert prepared.shape == (56, 56, 3) and prepared.dtype == np.uint8


def test_dinos_sizes():
    assert (dino_preprocess(224).size, dino_preprocess(224).crop) == (256, (224, 224))
    wide = Image.new("RGB", (640, 480))
    assert dino_preprocess(224).prepare(wide).shape == (224, 224, 3)
