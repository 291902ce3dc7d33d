"""Every scorer against a plain computation with the published classes, one image at a time."""

from __future__ import annotations

import json
import logging
import math
import shutil

import numpy as np
import pytest
import torch
from metric_models import PROMPTS, picture
from PIL import Image
from transformers import (
    AutoTokenizer,
    Blip2ForImageTextRetrieval,
    BlipForImageTextRetrieval,
    CLIPModel,
    ViTModel,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from cdiff import pocket
from cdiff.errors import UserError
from cdiff.metrics import open_metrics, prepare_references
from cdiff.schema import METRICS, MetricsConfig


def scorer_of(name: str, folder, world: str = "photo", **more):
    family = METRICS.get(name, name)
    [scorer] = open_metrics(MetricsConfig(names=[name], **{family: str(folder)}, **more), world)
    return scorer


def prompts_for(images) -> list[str]:
    return [PROMPTS[number % len(PROMPTS)] for number in range(len(images))]


def unit(x: torch.Tensor) -> torch.Tensor:
    return x / x.norm(dim=-1, keepdim=True)


@torch.no_grad()
def plain_clip(folder, images, prompts, references):
    """CLIP-T from logits_per_image, CLIP-I by a loop over the reference pictures."""
    model, tokenizer = CLIPModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    processor = CLIPImageProcessorPil.from_pretrained(folder)

    def seen(image):
        return processor(image, return_tensors="pt").pixel_values

    def feature(image):
        return unit(model.get_image_features(pixel_values=seen(image)).pooler_output)[0]

    text, image = [], []
    for picture_, prompt in zip(images, prompts):
        ids = tokenizer([prompt], padding="max_length", max_length=16, return_tensors="pt")
        out = model(pixel_values=seen(picture_), input_ids=ids.input_ids, attention_mask=ids.attention_mask)
        text.append((out.logits_per_image / model.logit_scale.exp()).item())
        image.append(np.mean([float(feature(picture_) @ feature(other)) for other in references]))
    return np.array(text), np.array(image)


def test_clip(clip_folder, images):
    prompts, references = prompts_for(images), [picture(90, 48, 70), picture(91, 64, 64), picture(92, 31, 33)]
    scorer = scorer_of("clip", clip_folder, batch_size=4)
    values = scorer.score(images, prompts, prepare_references([scorer], references))
    text, image = plain_clip(clip_folder, images, prompts, references)
    assert np.ptp(text) > 0.05 and np.ptp(image) > 0.05  # the random model tells the images apart
    np.testing.assert_allclose(values["clip_t"], text, atol=1e-5)
    np.testing.assert_allclose(values["clip_i"], image, atol=1e-5)
    assert values["clip_t"].dtype == np.float32 and set(values) == {"clip_t", "clip_i"}


def test_the_image_passes_through_clip_once_for_both_metrics(clip_folder, images):
    scorer = scorer_of("clip", clip_folder)
    reference = prepare_references([scorer], images[:2])
    calls = []
    scorer.network.vision_model.register_forward_hook(lambda *_: calls.append(1))
    scorer.score(images[:4], prompts_for(images[:4]), reference)
    assert len(calls) == 1


def plain_dino_pixels(image: Image.Image, resize: int, crop: int) -> torch.Tensor:
    """DINO's eval_knn.py as torchvision computes it: Resize(256, bicubic), CenterCrop(224), ToTensor, Normalize."""
    image = image.convert("RGB")
    width, height = image.size
    if width <= height:
        width, height = resize, int(resize * height / width)
    else:
        width, height = int(resize * width / height), resize
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    top, left = round((height - crop) / 2.0), round((width - crop) / 2.0)
    pixels = torch.tensor(np.array(image.crop((left, top, left + crop, top + crop)))).permute(2, 0, 1) / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (pixels - mean[:, None, None]) / std[:, None, None]


@torch.no_grad()
def test_dino_as_published(dino_folder, images):
    references = [picture(93, 100, 60), picture(94, 57, 71)]
    scorer = scorer_of("dino_i", dino_folder)
    values = scorer.score(images, prompts_for(images), prepare_references([scorer], references))["dino_i"]
    model = ViTModel.from_pretrained(dino_folder).eval()

    def feature(image):  # 56 pixels: 64 is to 56 as 256 is to 224
        return unit(model(plain_dino_pixels(image, 64, 56)[None]).last_hidden_state[0, 0])

    plain = [np.mean([float(feature(image) @ feature(other)) for other in references]) for image in images]
    assert np.ptp(plain) > 0.02
    np.testing.assert_allclose(values, plain, atol=1e-5)


def test_recognized_where_nobody_else_of_the_class_is_nearer(dino_folder, images, monkeypatch):
    people = [[picture(200 + 10 * person + view, 80, 80) for view in range(3)] for person in range(5)]
    asked = []
    monkeypatch.setattr(pocket, "other_individuals", lambda kind: asked.append(kind) or people)
    scorer = scorer_of("recognized", dino_folder, world="pocket")
    own = [picture(93, 100, 60), picture(94, 57, 71)]
    prompts = ["a photo of a dog", "a red dog at night", "a dog next to a cat", "something else"]
    shown = [*own, *people[0][:1], *people[1][:1]]
    values = scorer.score(shown, prompts, prepare_references([scorer], own))["recognized"]
    assert np.isnan(values[2:]).all(), "two classes, and none"
    assert asked == ["dog"], "features of the others are made once a class"
    cosines = scorer_of("dino_i", dino_folder, world="pocket")
    for row in (0, 1):
        near = [
            cosines.score(shown[row : row + 1], ["a dog"], prepare_references([cosines], person))["dino_i"][0]
            for person in [own, *people]
        ]
        assert values[row] == (near[0] > max(near[1:]))
    other = scorer.score(people[2][:1], ["a dog"], prepare_references([scorer], own))["recognized"]
    assert other[0] == 0.0, "a picture of somebody else is not recognized"


@torch.no_grad()
def test_dino_with_the_folders_own_preprocessing(dino_folder, images):
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    images = [image.convert("RGB") for image in images]
    model, processor = ViTModel.from_pretrained(dino_folder).eval(), ViTImageProcessorPil.from_pretrained(dino_folder)
    features = [
        unit(model(processor(image, return_tensors="pt").pixel_values).last_hidden_state[0, 0]) for image in images
    ]
    scorer = scorer_of("dino_i", dino_folder, world="pocket")
    values = scorer.score(images, prompts_for(images), prepare_references([scorer], images[:1]))["dino_i"]
    np.testing.assert_allclose(values, [float(feature @ features[0]) for feature in features], atol=1e-5)
    assert values[0] == pytest.approx(1, abs=1e-6)  # a picture is most like itself


@torch.no_grad()
@pytest.mark.parametrize("second", [False, True])
def test_blip(second, request, images):
    folder = request.getfixturevalue("blip2_folder" if second else "blip_folder")
    cls = Blip2ForImageTextRetrieval if second else BlipForImageTextRetrieval
    model, tokenizer = cls.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    processor = BlipImageProcessorPil.from_pretrained(folder)
    prompts = prompts_for(images)
    plain = []
    for image, prompt in zip(images, prompts):
        inputs = {"pixel_values": processor(image, return_tensors="pt").pixel_values}
        words = tokenizer([prompt], return_tensors="pt")
        inputs |= {"input_ids": words.input_ids, "attention_mask": words.attention_mask}
        if second:
            plain.append(model(**inputs, use_image_text_matching_head=False).logits_per_image.item())
        else:
            plain.append(model(**inputs, use_itm_head=False)[0].item())
    scorer = scorer_of("blip2_t", folder, batch_size=4)
    values = scorer.score(images, prompts)["blip2_t"]
    assert np.ptp(plain) > 0.02
    np.testing.assert_allclose(values, plain, atol=1e-5)
    assert ("BLIP-2" if second else "BLIP,") in scorer.model
    shuffled = scorer.score(images, prompts[1:] + prompts[:1])["blip2_t"]
    assert np.abs(shuffled - values).max() > 1e-3


def test_half_precision_keeps_to_the_same_numbers(clip_folder, blip_folder, blip2_folder, images):
    for name, folder in (("clip", clip_folder), ("blip2_t", blip_folder), ("blip2_t", blip2_folder)):
        family = "clip" if name == "clip" else "blip"
        conf = MetricsConfig(names=[name], **{family: str(folder)})
        [full], [half] = open_metrics(conf, "photo"), open_metrics(conf, "photo", dtype=torch.float16)
        metric = full.metrics[0]
        first, second = (s.score(images, prompts_for(images))[metric] for s in (full, half))
        assert np.abs(first - second).max() < 0.03 and np.isfinite(second).all()


def test_the_same_bits_twice(clip_folder, dino_folder, blip_folder, images):
    conf = MetricsConfig(clip=str(clip_folder), dino=str(dino_folder), blip=str(blip_folder))
    runs = []
    for _ in range(2):
        scorers = open_metrics(conf, "photo")
        reference = prepare_references(scorers, images[:3])
        runs.append([scorer.score(images, prompts_for(images), reference) for scorer in scorers])
    for first, second in zip(*runs):
        assert all(np.array_equal(first[name], second[name]) for name in first)


def test_no_reference_gives_nan_and_no_image_gives_nothing(clip_folder, images):
    scorer = scorer_of("clip", clip_folder)
    values = scorer.score(images[:2], PROMPTS[:2])
    assert np.isnan(values["clip_i"]).all() and np.isfinite(values["clip_t"]).all()
    assert scorer.score([], [])["clip_t"].shape == (0,)


def test_a_long_prompt_is_cut_with_a_warning_that_names_it(clip_folder, images, caplog):
    long = "a photo of a dog " * 10
    scorer = scorer_of("clip_t", clip_folder)
    with caplog.at_level(logging.WARNING, logger="cdiff"):
        cut = scorer.score(images[:1], [long])["clip_t"]
        scorer.score(images[:1], [long])
    [message] = [record.getMessage() for record in caplog.records]
    assert "a photo of a dog" in message and "16 tokens" in message
    np.testing.assert_allclose(
        cut, scorer.score(images[:1], ["a photo of a dog " * 2 + "a photo of a dog a"])["clip_t"]
    )


def test_models_of_the_wrong_kind(clip_folder, dino_folder, tmp_path):
    for name, folder, words in (
        ("clip", dino_folder, "'vit', and a CLIP model"),
        ("dino_i", clip_folder, "'clip', and a ViT"),
        ("blip2_t", clip_folder, "a BLIP or BLIP-2"),
        ("clip", tmp_path, "no config.json"),
        ("clip", tmp_path / "nowhere", "no such folder"),
    ):
        with pytest.raises(UserError, match=words) as told:
            scorer_of(name, folder).load()
        assert "\n" not in str(told.value)


def test_broken_model_folders(clip_folder, tmp_path):
    copy = tmp_path / "clip"
    shutil.copytree(clip_folder, copy)
    (copy / "model.safetensors").write_bytes(b"not a model")
    with pytest.raises(UserError, match="can't be loaded as CLIPModel"):
        scorer_of("clip", copy).load()
    shutil.copy(clip_folder / "model.safetensors", copy)
    conf = json.loads((copy / "preprocessor_config.json").read_text())
    (copy / "preprocessor_config.json").write_text(json.dumps(conf | {"crop_size": 48}))
    with pytest.raises(UserError, match="takes 32 x 32"):
        scorer_of("clip", copy).load()


def test_which_scorers_a_configuration_opens(clip_folder, dino_folder):
    conf = MetricsConfig(sources={"photo": {"clip": str(clip_folder), "dino": str(dino_folder)}})
    assert [s.metrics for s in open_metrics(conf, "photo")] == [("clip_t", "clip_i"), ("dino_i",)]
    conf.names = ["clip_i"]
    [scorer] = open_metrics(conf, "photo")
    assert scorer.metrics == ("clip_i",) and scorer.needs_references and scorer.model == str(clip_folder)
    conf.names = ["attributes"]
    with pytest.raises(UserError, match="attr_class has no model in the photo world"):
        open_metrics(conf, "photo")
    conf.names = ["clipt"]
    with pytest.raises(UserError, match="clipt is unknown"):
        open_metrics(conf, "photo")


def test_the_shipped_configurations_name_the_published_models():
    from cdiff.compose import compose, to_checked_config

    auto = to_checked_config(compose(["metrics.clip=somewhere", "metrics.names=[clip_t]"])).metrics
    release = to_checked_config(compose(["metrics=release"])).metrics
    assert (auto.clip, auto.names) == ("somewhere", ["clip_t"])
    assert auto.sources["photo"]["clip"] == release.sources["photo"]["clip"] == "openai/clip-vit-base-patch32"
    assert auto.sources["photo"]["blip"] == "Salesforce/blip2-itm-vit-g"
    assert release.sources["photo"]["blip"] == "Salesforce/blip-itm-large-coco"


def test_a_shipped_model_that_is_missing_is_left_out_with_a_word(clip_folder, monkeypatch, tmp_path, caplog):
    from cdiff import pocket

    monkeypatch.setattr(pocket, "WEIGHTS", tmp_path)
    conf = MetricsConfig(clip=str(clip_folder), sources={"pocket": {"blip": "pocket"}})
    with caplog.at_level(logging.WARNING, logger="cdiff"):
        assert [scorer.name for scorer in open_metrics(conf, "pocket")] == ["clip"]
    assert "'blip' are missing" in caplog.text
    conf.names = ["blip2_t"]
    [scorer] = open_metrics(conf, "pocket")
    with pytest.raises(UserError, match="'blip' are missing"):
        scorer.load()


def test_attributes(monkeypatch, images):
    from cdiff import pocket
    from cdiff.pocket import judging
    from cdiff.pocket.probe import Seen

    class Probe:
        def read(self, pictures, batch):
            return [Seen("beach", ("dog",), (), {"dog": "red"}) for _ in pictures]

    monkeypatch.setattr(judging, "open_probe", lambda folder, device: Probe())
    verdicts = pocket.judge_images(images[:2], ["a red dog on the beach", "a cat wearing a crown"], "anywhere")
    assert verdicts[0]["class"] == verdicts[0]["scene"] == verdicts[0]["color"] == 1
    assert math.isnan(verdicts[0]["accessory"])
    assert verdicts[1]["class"] == verdicts[1]["accessory"] == 0 and math.isnan(verdicts[1]["scene"])
