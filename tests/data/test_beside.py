"""Captions, masks and lists of pictures."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image
from tiny_job import draw_pictures

from cdiff.concepts import Concept
from cdiff.data.augment import View, apply_view
from cdiff.data.beside import own_caption, read_concept
from cdiff.data.images import read_folder
from cdiff.data.latents import encode_views, plan_views
from cdiff.errors import UserError
from cdiff.losses import reconstruction_loss
from cdiff.schema import AugmentConfig


@pytest.fixture
def folder(tmp_path):
    return draw_pictures(tmp_path / "pictures")


def half_mask(size: tuple[int, int]) -> Image.Image:
    """White on the left."""
    mask = Image.new("L", size)
    mask.paste(255, (0, 0, size[0] // 2, size[1]))
    return mask


def test_captions_of_pictures_that_are_not_there_are_told(folder, caplog):
    lines = [{"file_name": "0.png", "text": "here"}, {"file_name": "../../etc/passwd", "text": "there"}]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert [p.caption for p in read_concept(folder)] == ["here", None, None]
    assert "1 of its captions are of no picture used (passwd)" in caplog.text


def test_captions_of_text_files_and_of_metadata(folder):
    (folder / "0.txt").write_text("a dog\n on the  grass\n", encoding="utf-8-sig")
    records = [
        {"file_name": "0.png", "text": "not this"},
        {"file_name": "1.png", "text": "sleeping"},
        {"file_name": "2.png"},
    ]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, records)))
    assert [p.caption for p in read_concept(folder)] == ["a dog on the grass", "sleeping", None]
    assert [p.caption for p in read_concept(folder, captions=False)] == [None] * 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a dog on grass", "a <new1> dog on grass"),
        ("a Dog, and a hotdog", "a <new1> Dog, and a hotdog"),
        ("my {} at home", "my <new1> dog at home"),
        ("a <new1> dog in snow", "a <new1> dog in snow"),
        ("lying on grass", "a <new1> dog, lying on grass"),
        ("a hotdog", "a <new1> dog, a hotdog"),
    ],
)
def test_a_caption_gets_the_concept(text, expected):
    assert own_caption(text, "<new1>", "dog") == expected


def test_captions_stand_in_the_templates_place(folder):
    concept = Concept("rex", "<new1>", "dog", "dog", folder)
    captions = [["a dog on grass", None, None]]
    plan = plan_views([concept], [3], 90, AugmentConfig(), 64, 0, "plain", captions)
    for item in plan:
        assert ("on grass" in item.prompt) == (item.view.picture == 0)
        assert "<new1> dog" in item.prompt and item.view.prefix.removeprefix("a ") in item.prompt
    assert any("far away" in item.prompt and "on grass" in item.prompt for item in plan)


@pytest.mark.parametrize("name", ["1.mask.png", "1_mask.png", "1-masklabel.png", "masks/1.png"])
def test_a_mask_is_found_and_is_no_picture(folder, name):
    (folder / "masks").mkdir()
    half_mask((180, 144)).save(folder / name)
    pictures = read_concept(folder)
    assert [p.path.name for p in pictures] == ["0.png", "1.png", "2.png"]
    assert [p.mask is not None for p in pictures] == [False, True, False]
    assert pictures[1].mask.size == pictures[1].image.size and pictures[1].mask.mode == "L"
    assert [p.path.name for p in read_folder(folder)] == ["0.png", "1.png", "2.png"]


def test_masks_that_can_not_be_meant(folder):
    half_mask((50, 100)).save(folder / "1.mask.png")
    with pytest.raises(UserError, match=r"1\.mask\.png has other proportions"):
        read_concept(folder)
    Image.new("L", (90, 72)).save(folder / "1.mask.png")
    with pytest.raises(UserError, match="all black"):
        read_concept(folder)
    (folder / "1.mask.png").write_bytes(b"")
    with pytest.raises(UserError, match="empty"):
        read_concept(folder)


def test_a_mask_follows_its_picture_through_every_view():
    """The picture is its own mask: where it is white the loss counts."""
    white = half_mask((64, 64))
    picture = white.convert("RGB")
    for view in (
        View(0),
        View(0, flip=True),
        View(0, scale=0.5, left=16, top=8),
        View(0, scale=0.5, left=8, top=8, flip=True),
        View(0, scale=1.25, left=8, top=4),
    ):
        pixels, geometry = apply_view(picture, view, 64, 8)
        _, mask = apply_view(picture, view, 64, 8, white)
        brightness = ((pixels[0] + 1) / 2).view(8, 8, 8, 8).mean(dim=(1, 3))
        torch.testing.assert_close(mask[0], geometry[0] * brightness, atol=5e-3, rtol=0)
        assert 0 < mask.sum() < geometry.sum()


def test_the_background_keeps_the_weight_that_is_asked_for():
    white = half_mask((64, 64))
    _, mask = apply_view(white.convert("RGB"), View(0), 64, 8, white, background=0.25)
    assert mask.unique().tolist() == [0.25, 1.0] and mask[0, :, :4].eq(1).all()


def test_the_loss_sees_the_mask(folder, sd15):
    half_mask((80, 72)).save(folder / "0.mask.png")
    concept = Concept("rex", "<new1>", "dog", "dog", folder)
    conf = AugmentConfig(enabled=False)
    pictures = [read_concept(folder)[:1]]
    views = encode_views(sd15.vae, [concept], pictures, 1, conf, 64, 0, "cpu", 1, "plain")
    mask = views.masks[:1]
    assert mask[0, 0, :, :3].eq(1).all() and mask[0, 0, :, 5:].eq(0).all()
    target = torch.zeros(1, 4, 8, 8)
    outside, inside = target.clone(), target.clone()
    outside[..., 6:] = 1.0
    inside[..., :2] = 1.0
    assert reconstruction_loss(outside, target, mask) == 0 and reconstruction_loss(inside, target, mask) > 0


def test_a_list_of_pictures(folder, tmp_path):
    listing = tmp_path / "list.txt"
    listing.write_text(f"# mine\npictures/2.png\n{folder / '0.png'}\n\n", encoding="utf-8")
    assert [p.path.name for p in read_concept(listing)] == ["2.png", "0.png"]
    (folder / "0.txt").write_text("a dog", encoding="utf-8")
    table = folder / "some.jsonl"
    table.write_text(json.dumps({"file_name": "1.png", "text": "asleep"}))
    assert [(p.path.name, p.caption) for p in read_concept(table)] == [("1.png", "asleep")]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "names no picture"),
        ("nothing.png", "nothing.png, which is not there"),
    ],
)
def test_lists_that_can_not_be_used(tmp_path, text, words):
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(UserError, match=words):
        read_folder(tmp_path / "list.txt")


@pytest.mark.parametrize("line", ["[1]", "{}", "not json", '{"file_name": 3}', '{"file_name": "0.png", "text": 3}'])
def test_a_wrong_line_of_metadata_is_named(folder, line):
    (folder / "metadata.jsonl").write_text(f"{json.dumps({'file_name': '1.png'})}\n{line}\n")
    with pytest.raises(UserError, match=r"Line 2 of .*metadata\.jsonl"):
        read_concept(folder)
