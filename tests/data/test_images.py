"""Every kind of file a user may have, made on the fly with Pillow."""

import io
import logging
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from cdiff.data import images
from cdiff.data.images import read_folder, read_picture
from cdiff.errors import UserError

SHARED = Path(__file__).parents[3] / "shared" / "data" / "dreambooth"


def gradient(width: int = 40, height: int = 24) -> Image.Image:
    """Red grows to the right, green downwards; blue is 128."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, np.full_like(x, 128)], -1).astype(np.uint8))


def saved(image: Image.Image, path: Path, **options) -> Path:
    image.save(path, **options)
    return path


def pixel(path: Path, x: int, y: int) -> tuple[int, ...]:
    return read_picture(path).image.getpixel((x, y))


def notes(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "cdiff"]


@pytest.fixture(autouse=True)
def _log(caplog):
    caplog.set_level(logging.INFO, logger="cdiff")


def test_plain_rgb_is_kept_exactly_and_not_logged(tmp_path, caplog):
    picture = read_picture(saved(gradient(), tmp_path / "a.png"))
    assert np.array_equal(np.array(picture.image), np.array(gradient()))
    assert type(picture.image) is Image.Image  # no open file behind it
    assert notes(caplog) == []


@pytest.mark.parametrize("orientation", range(2, 9))
def test_exif_rotation(tmp_path, caplog, orientation):
    upright = gradient()
    turns = [
        None, Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180, Image.Transpose.FLIP_TOP_BOTTOM,
        Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_90, Image.Transpose.TRANSVERSE, Image.Transpose.ROTATE_270,
    ]  # fmt: skip
    exif = Image.Exif()
    exif[images.ORIENTATION] = orientation
    for name in ("a.png", "a.tif", "a.webp"):
        options = {"lossless": True} if name == "a.webp" else {}
        path = saved(upright.transpose(turns[orientation - 1]), tmp_path / name, exif=exif, **options)
        assert np.array_equal(np.array(read_picture(path).image), np.array(upright))
    assert len(notes(caplog)) == 3 and all("EXIF" in note for note in notes(caplog))


def test_exif_rotation_of_a_reduced_jpeg_and_nonsense_exif(tmp_path):
    exif = Image.Exif()
    exif[images.ORIENTATION] = 6
    path = saved(gradient(800, 400), tmp_path / "a.jpg", exif=exif, quality=95)
    picture = read_picture(path, max_side=40)
    assert picture.image.size == (40, 80)
    assert picture.image.getpixel((20, 75))[0] > 230  # red lies at the foot now
    assert read_picture(saved(gradient(), tmp_path / "b.jpg", exif=b"Exif\0\0nonsense")).image.size == (40, 24)


def test_cmyk(tmp_path, caplog):
    assert pixel(saved(Image.new("CMYK", (20, 20), (0, 255, 255, 0)), tmp_path / "a.jpg", quality=100), 5, 5)[0] > 240
    assert pixel(saved(Image.new("CMYK", (20, 20), (255, 0, 255, 0)), tmp_path / "b.tif"), 5, 5) == (0, 255, 0)
    assert all("CMYK" in note for note in notes(caplog)) and len(notes(caplog)) == 2


def test_palette_greyscale_and_bilevel(tmp_path, caplog):
    red = Image.new("RGB", (20, 20), (255, 0, 0))
    assert pixel(saved(red.quantize(4), tmp_path / "a.png"), 5, 5) == (255, 0, 0)
    assert pixel(saved(Image.new("L", (20, 20), 90), tmp_path / "b.png"), 5, 5) == (90, 90, 90)
    assert pixel(saved(Image.new("1", (20, 20), 1), tmp_path / "c.png"), 5, 5) == (255, 255, 255)
    for note, kind in zip(notes(caplog), ("palette", "greyscale", "black and white"), strict=True):
        assert kind in note


def test_sixteen_bits_are_scaled_not_clipped(tmp_path, caplog):
    ramp = np.linspace(0, 65535, 40 * 20).reshape(20, 40).astype(np.uint16)
    for name in ("a.png", "b.tif"):
        image = read_picture(saved(Image.fromarray(ramp), tmp_path / name)).image
        assert np.array_equal(np.array(image)[..., 0], np.rint(ramp / 257).astype(np.uint8))
    floats = read_picture(saved(Image.fromarray(ramp.astype(np.float32) / 65535), tmp_path / "c.tif")).image
    assert np.array_equal(np.array(floats)[..., 1], np.rint(ramp / 257).astype(np.uint8))
    assert len(notes(caplog)) == 3 and all(note.count("scaled to 8") == 1 for note in notes(caplog))


def test_sixteen_bits_a_channel(tmp_path, caplog):
    (tmp_path / "a.png").write_bytes(png(16, 16, 2, 16, struct.pack(">HHH", 65535, 32768, 0) * 16))
    assert pixel(tmp_path / "a.png", 3, 3) == (255, 128, 0)
    assert "16 bits" in notes(caplog)[0]


def test_transparent_parts_lie_on_white(tmp_path, caplog):
    rgba = Image.new("RGBA", (20, 20), (255, 0, 0, 255))
    rgba.paste((0, 0, 255, 0), (0, 0, 10, 20))
    rgba.paste((0, 0, 0, 128), (10, 0, 15, 20))
    path = saved(rgba, tmp_path / "a.png")
    assert [pixel(path, x, 5) for x in (5, 12, 18)] == [(255, 255, 255), (127, 127, 127), (255, 0, 0)]
    la = Image.new("LA", (20, 20), (0, 0))
    assert pixel(saved(la, tmp_path / "b.png"), 5, 5) == (255, 255, 255)
    palette = Image.new("P", (20, 20), 0)
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.putpixel((3, 3), 1)
    path = saved(palette, tmp_path / "c.gif", transparency=0)
    assert pixel(path, 5, 5) == (255, 255, 255) and pixel(path, 3, 3) == (0, 255, 0)
    assert all("white" in note for note in notes(caplog))


def test_opaque_alpha_is_silent(tmp_path, caplog):
    read_picture(saved(gradient().convert("RGBA"), tmp_path / "a.png"))
    assert notes(caplog) == []


def test_profiles_become_srgb(tmp_path, caplog):
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    plain = read_picture(saved(gradient(), tmp_path / "a.png", icc_profile=lab)).image
    assert np.array_equal(np.array(plain), np.array(gradient()))
    broken = read_picture(saved(gradient(), tmp_path / "b.png", icc_profile=b"not a profile")).image
    assert np.array_equal(np.array(broken), np.array(gradient()))


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_first_frame_of_an_animation(tmp_path, caplog, suffix):
    frames = [Image.new("RGB", (20, 20), color) for color in ("red", "blue", "green")]
    path = saved(frames[0], tmp_path / f"a{suffix}", save_all=True, append_images=frames[1:])
    assert pixel(path, 5, 5)[0] > 240 and pixel(path, 5, 5)[2] < 15
    assert any("frame" in note for note in notes(caplog))


def test_max_side_reduces_the_shorter_side(tmp_path):
    for suffix in (".png", ".jpg"):
        path = saved(gradient(1200, 800), tmp_path / f"a{suffix}")
        image = read_picture(path, max_side=100).image
        assert image.size == (150, 100)
        assert abs(image.getpixel((75, 50))[0] - 128) < 4
    assert read_picture(path, max_side=2000).image.size == (1200, 800)


def png(width: int, height: int, color_type: int, depth: int, row: bytes, rows: int | None = None) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0)
    body = zlib.compress((b"\0" + row) * (height if rows is None else rows), 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def bad_files(folder: Path) -> dict[str, str]:
    """Files that can't be used: name -> a word of the reason."""
    whole = io.BytesIO()
    gradient(400, 300).save(whole, "JPEG")
    data = {
        "zero.jpg": (b"", "0 bytes"),
        "text.png": (b"these are not pixels\n" * 9, "not an image"),
        "cut.jpg": (whole.getvalue()[: len(whole.getvalue()) // 2], "cut short"),
        "cut.png": (png(64, 64, 2, 8, bytes(192), rows=20)[:-20], "cut short"),
        "dot.png": (png(1, 1, 0, 8, b"\0"), "too small"),
        "thin.png": (png(400, 15, 0, 8, bytes(400)), "too small"),
        "huge.png": (png(30_000, 30_000, 0, 8, b"", rows=0), "too large"),
        "photo.heic": (b"\0\0\0\x18ftypheic" + bytes(60), "HEIC"),
    }
    for name, (content, _) in data.items():
        (folder / name).write_bytes(content)
    return {name: reason for name, (_, reason) in data.items()}


def test_unusable_files_are_named_one_by_one(tmp_path):
    for name, reason in bad_files(tmp_path).items():
        with pytest.raises(UserError, match=reason) as caught:
            read_picture(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value)


def test_folder_uses_what_it_can_and_names_the_rest(tmp_path, caplog):
    bad = bad_files(tmp_path)
    for name in ("10.png", "2.png", "1.PNG", ".hidden.png"):
        saved(gradient(), tmp_path / name)
    (tmp_path / "notes.txt").write_text("ignored")
    (tmp_path / "prompts.json").write_text("{}")
    (tmp_path / "folder.png").mkdir()
    assert [picture.path.name for picture in read_folder(tmp_path)] == ["1.PNG", "2.png", "10.png"]
    text = "\n".join(notes(caplog))
    assert all(f"{os.sep}{name}" in text for name in bad) and text.count("skipped") == len(bad)
    assert "notes.txt" not in text and "hidden" not in text
    assert len(read_folder(tmp_path, limit=2)) == 2


def test_folders_without_a_usable_picture(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_folder(tmp_path / "none")
    with pytest.raises(UserError, match="empty"):
        read_folder(tmp_path)
    (tmp_path / "inner").mkdir()
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(UserError, match="inner"):
        read_folder(tmp_path)
    with pytest.raises(UserError, match=r"names .*x, which is not there"):
        read_folder(tmp_path / "a.txt")
    (tmp_path / "a.md").write_text("x")
    with pytest.raises(UserError, match="not a folder"):
        read_folder(tmp_path / "a.md")
    bad_files(tmp_path)
    with pytest.raises(UserError, match=r"can be used.*7 more"):
        read_folder(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        read_picture(tmp_path / "nothing.png")


def test_a_panorama_of_30_000_pixels_is_used(tmp_path):
    path = saved(Image.new("RGB", (30_000, 32), "red"), tmp_path / "a.png")
    assert read_picture(path, max_side=16).image.size == (15_000, 16)


def test_a_jpeg_too_large_to_decode_whole_is_reduced(tmp_path, monkeypatch, caplog):
    path = saved(gradient(900, 600), tmp_path / "a.jpg")
    progressive = saved(gradient(900, 600), tmp_path / "p.jpg", progressive=True)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)  # so that Pillow's own check refuses, as at 180 million
    monkeypatch.setattr(images, "MAX_PIXELS", 100_000)
    image = read_picture(path).image
    assert image.size == (225, 150) and abs(image.getpixel((112, 75))[0] - 128) < 6
    assert "reduced while reading" in notes(caplog)[0]
    with pytest.raises(UserError, match="900 x 600 pixels"):
        read_picture(progressive)


def test_no_handle_stays_open(tmp_path):
    bad_files(tmp_path)
    saved(gradient(), tmp_path / "a.png")
    frames = [Image.new("RGB", (20, 20), color) for color in ("red", "blue")]
    saved(frames[0], tmp_path / "b.gif", save_all=True, append_images=frames[1:])
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
        kept = read_folder(tmp_path)
        after = len(os.listdir("/proc/self/fd")) if before else 0
    assert len(kept) == 2 and after == before


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared photos are not here")
def test_real_photos():
    pictures = read_folder(SHARED / "dog", max_side=256)
    assert len(pictures) == 5 and all(picture.image.size == (256, 256) for picture in pictures)
