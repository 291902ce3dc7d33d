"""Reading a user's pictures, whatever they are, as RGB; Pillow alone.

A file is judged by its header before its pixels are decoded, so that memory stays bounded.
Everything done to a picture beyond decoding it is named in the log, one line a file.
"""

from __future__ import annotations

import io
import logging
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from cdiff.data.listing import picture_files
from cdiff.errors import UserError
from cdiff.storage import inside

MIN_SIDE = 16  # pixels; anything smaller shows no subject
MAX_PIXELS = 100_000_000  # decoded at once: 0.4 GB in memory
ORIENTATION = 0x0112  # the EXIF tag, 1 when upright
TURNED = range(2, 9)
GREY_DEPTHS = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")  # Pillow's modes of more than 8 bits; clipped by convert()
MODE_NAMES = {"CMYK": "CMYK", "P": "palette", "PA": "palette", "1": "black and white", "L": "greyscale",
              "LA": "greyscale", "La": "greyscale", "YCbCr": "YCbCr", "HSV": "HSV", "LAB": "LAB"}  # fmt: skip

T = TypeVar("T")
log = logging.getLogger("cdiff")


@dataclass(frozen=True)
class Picture:
    path: Path
    image: Image.Image  # RGB
    caption: str | None = None  # of the user's own (data.beside)
    mask: Image.Image | None = None  # L, of the image's size: white where the loss counts (data.beside)


def read_folder(folder: str | Path, max_side: int | None = None, limit: int | None = None) -> list[Picture]:
    """The usable pictures of `folder` in natural order of their names ("2.png" before "10.png"), or of a list of files
    (data.listing) in its order.

    Hidden files, other kinds of files, masks and subfolders are passed over; a picture that can't be
    used is named in the log. `max_side` as in `read_picture`; `limit`: at most so many pictures.
    Raises UserError when the folder is missing or no picture in it can be used.
    """
    folder = Path(folder).expanduser()
    files = picture_files(folder)
    pictures: list[Picture] = []
    faults: list[str] = []
    for path in files:
        if limit is not None and len(pictures) >= limit:
            break
        try:
            if folder.is_dir() and not inside(path, folder):  # a list names its files itself
                raise UserError(f"The picture {path} is a link to {path.resolve()}, outside of its folder: copy it.")
            pictures.append(read_picture(path, max_side))
        except UserError as error:
            faults.append(str(error))
            log.warning("skipped: %s", error)
    if not pictures:
        more = f" (and {len(faults) - 1} more like it)" if len(faults) > 1 else ""
        raise UserError(f"No picture in {folder} can be used: {faults[0]}{more}.")
    return pictures


def read_picture(path: str | Path, max_side: int | None = None) -> Picture:
    """One picture, upright and RGB.

    EXIF rotation is applied; transparent parts lie on white; 16-bit values are scaled; colours of
    an embedded profile become sRGB; of several frames the first is taken. With `max_side` a picture
    whose SHORTER side is longer than that is reduced to it, so that a square crop keeps `max_side` pixels.
    Raises UserError naming the file when it can't be used.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"The picture {path} {'is not a file' if path.exists() else 'does not exist'}.")
    notes: list[str] = []
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, about sizes and metadata that are judged here
            image = _decode(file, path, max_side, notes)
    except PermissionError as error:
        raise UserError(f"The picture {path} can't be read: permission denied.") from error
    if notes:
        log.info("%s: %s", path.name, "; ".join(notes))
    return Picture(path, image)


def _decode(file: BinaryIO, path: Path, max_side: int | None, notes: list[str]) -> Image.Image:
    image = _open(file, path)
    width, height = image.size
    if min(width, height) < MIN_SIDE:
        raise UserError(
            f"The picture {path} is too small: {width} x {height} pixels, at least {MIN_SIDE} a side needed."
        )
    _shrink_while_decoding(image, path, max_side, notes)
    if any(";16" in str(tile) for tile in image.tile):
        notes.append("16 bits a channel scaled to 8")
    if _guard(path, lambda: getattr(image, "is_animated", False), default=False) and image.format != "MPO":
        notes.append("several frames, the first is used")  # an MPO's other frames are previews
    upright_when_loaded = image.format == "TIFF" and _orientation(image, path) in TURNED
    _guard(path, image.load)  # before the EXIF data of the rest: a PNG's lie behind its pixels
    if upright_when_loaded or _orientation(image, path) in TURNED:
        image = image if upright_when_loaded else ImageOps.exif_transpose(image)
        notes.append("rotated as its EXIF data says")
    return _reduced(_guard(path, lambda: _to_rgb(image, notes)), max_side)


def _orientation(image: Image.Image, path: Path) -> int:
    return _guard(path, lambda: image.getexif().get(ORIENTATION, 1), default=1)


def _open(file: BinaryIO, path: Path) -> Image.Image:
    """The picture with its header read, its pixels not."""
    if path.stat().st_size == 0:
        raise UserError(f"The picture {path} is empty (0 bytes).")
    try:
        return Image.open(file)
    except Image.DecompressionBombError:
        file.seek(0)
        try:
            return JpegImageFile(file)  # the class itself does not judge the size, and a JPEG decodes at 1/8 if need be
        except SyntaxError:
            raise _too_large(path) from None
    except UnidentifiedImageError as error:
        heic = path.suffix.lower() in (".heic", ".heif")
        hint = "HEIC needs to be saved as JPEG or PNG first" if heic else "it is damaged or something else"
        raise UserError(f"The picture {path} is not an image that can be read: {hint}.") from error
    except PermissionError:
        raise
    except Exception as error:  # decoders of foreign files raise whatever they like
        raise _damaged(path, error) from error


def _shrink_while_decoding(image: Image.Image, path: Path, max_side: int | None, notes: list[str]) -> None:
    """Sets a JPEG to decode at 1/2, 1/4 or 1/8, never under twice `max_side`; refuses what stays too large."""
    width, height = image.size
    shrink = min(width, height) // (2 * max_side) if max_side else 1
    if width * height > MAX_PIXELS:
        needed = 2 ** math.ceil(math.log2(width * height / MAX_PIXELS) / 2)
        # A progressive JPEG's coefficients are all held at full size, whatever it decodes to.
        if not isinstance(image, JpegImageFile) or needed > 8 or image.info.get("progressive"):
            raise _too_large(path, image.size)
        notes.append(f"{width} x {height} pixels, reduced while reading")
        shrink = max(shrink, needed)
    if shrink > 1 and isinstance(image, JpegImageFile):
        image.draft(None, (width // shrink, height // shrink))
    if image.size[0] * image.size[1] > MAX_PIXELS:
        raise _too_large(path, (width, height))


def _to_rgb(image: Image.Image, notes: list[str]) -> Image.Image:
    """A new RGB image of the same size; names in `notes` what was done to it."""
    if image.mode in GREY_DEPTHS:
        if not any("16 bits" in note for note in notes):
            notes.append("16 or 32 bits a pixel scaled to 8")
        return _grey_to_8_bits(image).convert("RGB")
    if image.mode in MODE_NAMES:
        notes.append(f"{MODE_NAMES[image.mode]} converted to RGB")
    if image.has_transparency_data:
        image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        if image.getchannel("A").getextrema()[0] < 255:
            notes.append("transparent parts put on white")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    if image.mode in ("RGB", "CMYK") and image.info.get("icc_profile"):
        return _to_srgb(image, notes)
    if image.mode == "LAB":
        return ImageCms.profileToProfile(
            image, ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    return image.convert("RGB") if image.mode != "RGB" else image.copy()


def _grey_to_8_bits(image: Image.Image) -> Image.Image:
    """16-bit values over their full range; 32-bit and float ones, which have none, from least to greatest."""
    values = np.asarray(image).astype(np.float64)
    low, high = values.min(), values.max()
    if image.mode != "F" and low >= 0 and high <= 65535:
        low, high = 0.0, 65535.0
    elif not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError("it holds values that are not finite")
    return Image.fromarray(np.rint((values - low) * (255.0 / max(high - low, 1e-12))).astype(np.uint8))


def _to_srgb(image: Image.Image, notes: list[str]) -> Image.Image:
    """Colours of the embedded profile (Display P3 of a phone, CMYK of a press) in sRGB."""
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
        name = ImageCms.getProfileDescription(profile).strip()
        if image.mode == "RGB" and "srgb" in name.lower():
            return image.copy()
        converted = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):  # a broken profile, or one of another mode
        return image.convert("RGB") if image.mode != "RGB" else image.copy()
    notes.append(f"colours of the profile {name!r} converted to sRGB")
    return converted


def _reduced(image: Image.Image, max_side: int | None) -> Image.Image:
    if not max_side or min(image.size) <= max_side:
        return image
    scale = max_side / min(image.size)
    size = tuple(max(max_side, round(side * scale)) for side in image.size)
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


def _guard(path: Path, work: Callable[[], T], default: T | None = None) -> T:
    """What `work` returns; a decoder's failure becomes `default` or, without one, a UserError."""
    try:
        return work()
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise _too_large(path) from error
    except Exception as error:  # decoders of foreign files raise whatever they like
        if default is not None:
            return default
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"The picture {path} is damaged or cut short ({str(error) or type(error).__name__}).")


def _too_large(path: Path, size: tuple[int, int] | None = None) -> UserError:
    what = f"{size[0]} x {size[1]} pixels" if size else "its pixels"
    return UserError(
        f"The picture {path} is too large to decode ({what}, over {MAX_PIXELS // 10**6} million): save a smaller copy."
    )
