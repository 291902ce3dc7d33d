"""Makers of files that nobody should trust."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
import zlib
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file, save, save_file

UNET = "pytorch_custom_diffusion_weights"
LAUGHS = "a: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"b{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes, pixels: bytes = b"") -> bytes:
    """A PNG that says it has so many pixels."""
    head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + head
        + b"".join(chunks)
        + png_chunk(b"IDAT", zlib.compress(pixels))
        + png_chunk(b"IEND", b"")
    )


def picture(form: str, size: int = 64, **options) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (size, size), (90, 120, 200)).save(stream, form, **options)
    return stream.getvalue()


def float_tiff() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(torch.full((64, 64), float("nan")).numpy(), "F").save(stream, "TIFF")
    return stream.getvalue()


IMAGES = {  # what lies in the picture's file
    "empty.png": b"",
    "text.png": b"this is no picture",
    "cut.png": picture("PNG")[:80],
    "cut.jpg": picture("JPEG", 256)[:400],
    "bomb.png": png(60_000, 60_000),
    "bomb.gif": b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + b"\x00\x00\x00;",
    "bomb.bmp": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 100, 0, 0, 54, 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0),
    "textbomb.png": png(64, 64, png_chunk(b"zTXt", b"Comment\x00\x00" + zlib.compress(bytes(200_000_000), 9))),
    "nopixels.png": png(64, 64),
    "tiny.png": picture("PNG", 1),
    "nan.tiff": float_tiff(),
    "script.svg.png": b"<svg onload='alert(1)'/>",
    "html.webp": b"<!DOCTYPE html><html>404</html>",
    "header.jpg": b"\xff\xd8\xff\xe0" + bytes(500),
}


class Code:
    """Unpickled, it would make a file called ran."""

    def __reduce__(self):
        return (open, ("ran", "w"))


def zipped(**files: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name.replace("__", "/"), data)
    return stream.getvalue()


def torch_bytes(value) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def bin_of(value: bytes):
    """The adapter's weights replaced by STEM.bin with such bytes."""

    def change(folder: Path) -> None:
        (folder / f"{UNET}.safetensors").unlink()
        (folder / f"{UNET}.bin").write_bytes(value)

    return change


def weights(change):
    """The adapter's tensors changed in place, or replaced by what `change` returns."""

    def rewrite(folder: Path) -> None:
        tensors = load_file(folder / f"{UNET}.safetensors")
        tensors = change(tensors) or tensors
        save_file(tensors, folder / f"{UNET}.safetensors")

    return rewrite


def info(**changes):
    def rewrite(folder: Path) -> None:
        file = folder / "adapter.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return rewrite


def write(name: str, data: bytes):
    return lambda folder: (folder / name).write_bytes(data)


def first(tensors: dict) -> str:
    return sorted(tensors)[0]


def linked(folder: Path) -> None:
    """The token is a link to a file elsewhere."""
    elsewhere = folder.parent.parent / "elsewhere.safetensors"
    (folder / "<new1>.safetensors").rename(elsewhere)
    (folder / "<new1>.safetensors").symlink_to(elsewhere)


def huge_view() -> bytes:
    return torch_bytes({"<new1>": torch.zeros(1).expand(10**13)})


def deep_json() -> bytes:
    return b"[" * 200_000


ADAPTERS = {  # what is done to the adapter of a finished run -> the words that must name it
    "weights empty": (write(f"{UNET}.safetensors", b""), f"{UNET}.safetensors is empty"),
    "weights of text": (write(f"{UNET}.safetensors", b"<!DOCTYPE html>" * 9), f"{UNET}.safetensors"),
    "header too long": (write(f"{UNET}.safetensors", (1 << 60).to_bytes(8, "little") + b"{" * 99), UNET),
    "header lies": (write(f"{UNET}.safetensors", save({"a": torch.zeros(9)})[:-8]), UNET),
    "pickle with code": (bin_of(pickle.dumps(Code())), "holds more than tensors"),
    "torch file with code": (bin_of(torch_bytes({"x": Code()})), "holds more than tensors"),
    "zip that leaves": (bin_of(zipped(**{"..__..__evil": b"x" * 50})), "points outside"),
    "zip bomb": (bin_of(zipped(data=bytes(50_000_000))), "compressed archive"),
    "no dictionary": (bin_of(torch_bytes([torch.zeros(3)])), "not named tensors"),
    "numbered tensors": (bin_of(torch_bytes({1: torch.zeros(3)})), "not named tensors"),
    "a view of 10^13 numbers": (bin_of(huge_view()), "claims more numbers than the file holds"),
    "half a torch file": (bin_of(torch_bytes({"x": torch.zeros(999)})[:700]), f"{UNET}.bin"),
    "not finite": (weights(lambda t: t[first(t)].fill_(float("inf")) is None), "not finite"),
    "whole numbers": (weights(lambda t: {**t, first(t): t[first(t)].long()}), "torch.int64"),
    "float8": (weights(lambda t: {**t, first(t): t[first(t)].to(torch.float8_e4m3fn)}), "float8"),
    "a layer left out": (weights(lambda t: {k: v for k, v in t.items() if k != first(t)}), "tensors"),
    "a layer too many": (
        weights(lambda t: {**t, "up_blocks.9.attn2.processor.to_k": torch.zeros(2, 2)}),
        "up_blocks.9",
    ),
    "another shape": (weights(lambda t: {**t, first(t): t[first(t)][:-1].contiguous()}), "has shape"),
    "token that leaves": (info(tokens=["../../../x"]), "can't be a token"),
    "token with a folder": (info(tokens=["<new1>/.."]), "can't be a token"),
    "tokens no list": (info(tokens={"a": 1}), "adapter.json: tokens"),
    "tokens of numbers": (info(tokens=[1, None]), "adapter.json: tokens"),
    "concepts no list": (info(concepts="dog"), "adapter.json: concepts"),
    "concepts without words": (info(concepts=[{"token": "<new1>"}]), "adapter.json: concepts"),
    "base model no text": (info(base_model=["x"]), "adapter.json: base_model"),
    "another format": (info(format=7), "update cdiff"),
    "json too deep": (write("adapter.json", deep_json()), "adapter.json"),
    "json of bytes": (write("adapter.json", bytes(range(256))), "adapter.json"),
    "a token file gone": (lambda folder: (folder / "<new1>.safetensors").unlink(), "lacks <new1>.safetensors"),
    "a token of another width": (write("<new1>.safetensors", save({"<new1>": torch.zeros(7)})), "has 7 numbers"),
    "a link outside": (linked, "outside of the adapter's folder"),
    "no adapter": (lambda folder: [file.unlink() for file in folder.iterdir()], "holds no adapter"),
}
