"""Images of the class for prior preservation (DreamBooth, arXiv 2208.12242, section 3.2): drawn or read, and encoded.

`prior=generated` draws them with the untouched base and keeps each under the user's cache by all that decides its
pixels: weights, vocabulary and noise schedule of the base, precision, resolution, sampler, seed, prompt, number.
Files appear whole or not at all, so any number of processes may draw into the cache; they share the work.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from PIL import Image

from cdiff.cache import cache_folder
from cdiff.concepts import Concept
from cdiff.console import progress
from cdiff.data.images import Picture, read_folder, read_picture
from cdiff.data.latents import TrainingViews, encode_class_images
from cdiff.drawing import TOKEN
from cdiff.errors import UserError
from cdiff.grids import slug
from cdiff.memory import views_at_once
from cdiff.models import Base
from cdiff.runs import atomic_write
from cdiff.sampling import Request, image_seed, sample
from cdiff.schema import Config, PriorConfig

log = logging.getLogger("cdiff")

CLASS_PROMPT = "a photo of a {class_word}"
NO_EFFECT = (
    "batch_size",
    "execution",
    "token_adjust",
)  # of the sampler: they change no pixel of these images


@dataclass(frozen=True)
class ClassImage:
    """One class image: its picture and the prompt it is trained with."""

    picture: Picture
    prompt: str


def prior_views(cfg: Config, base: Base, concepts: Sequence[Concept]) -> TrainingViews | None:
    """The class images in latent space; None with prior=none. Call it before tokens are added to `base`.

    Raises:
        UserError: a prompt, captions file or folder that can't be used, or a cache that can't be written.
    """
    if cfg.prior.name == "none":
        return None
    classes = list(dict.fromkeys(concept.class_word for concept in concepts))
    if cfg.prior.count < len(classes):
        raise UserError(f"prior.count={cfg.prior.count} is too few for {len(classes)} classes ({', '.join(classes)}).")
    images = generated(cfg, base, classes) if cfg.prior.name == "generated" else from_folder(cfg, classes)
    side = cfg.model.resolution
    batch = views_at_once(cfg.memory, side, base.device.type)
    pictures, prompts = [image.picture for image in images], [image.prompt for image in images]
    with progress(len(images), "Encoding class images") as ticker:
        return encode_class_images(base.vae, pictures, prompts, side, base.device, batch, progress=ticker)


def shares(count: int, classes: int) -> list[int]:
    """`count` in equal parts, the first ones larger by one where it can't be divided."""
    return [count // classes + (place < count % classes) for place in range(classes)]


# ---- which images ----


def class_prompts(conf: PriorConfig, classes: Sequence[str]) -> list[tuple[str, int]]:
    """(prompt, number among the images of this prompt) of `conf.count` images, equal shares a class."""
    templates = read_captions(conf.captions) if conf.captions else [conf.prompt or CLASS_PROMPT]
    for template in templates:
        if found := TOKEN.search(template):
            raise UserError(f"The class prompt '{template}' names {found[0]}: class images show the class alone.")
    used: Counter[str] = Counter()
    wanted = []
    for class_word, share in zip(classes, shares(conf.count, len(classes)), strict=True):
        for place in range(share):
            prompt = templates[place % len(templates)].replace("{class_word}", class_word)
            wanted.append((prompt, used[prompt]))
            used[prompt] += 1
    return wanted


def read_captions(file: str | Path) -> list[str]:
    """One caption a line, {class_word} in it stands for the class; empty lines and # lines are passed over."""
    path = Path(file).expanduser()
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise UserError(f"prior.captions={path} is not UTF-8 text; save it as UTF-8, one caption a line.") from error
    except OSError as error:
        raise UserError(f"prior.captions={path} can't be read ({error.strerror or error}).") from error
    captions = [line for line in lines if line and not line.startswith("#")]
    if not captions:
        raise UserError(f"prior.captions={path} holds no caption; write one a line.")
    return captions


# ---- drawn by the base ----


def generated(cfg: Config, base: Base, classes: Sequence[str]) -> list[ClassImage]:
    """`prior.count` images: those in the cache, and the missing ones, drawn now in batches."""
    if (folder := cfg.prior.images) is not None:
        raise UserError(f"prior.images={folder} goes with prior=folder; prior=generated draws its own images.")
    wanted = class_prompts(cfg.prior, classes)
    folder = cache_place(cfg, base)
    files = {key: folder / prompt_folder(key[0]) / f"{key[1]}.png" for key in wanted}
    pictures = {key: found for key in wanted if (found := _cached(files[key])) is not None}
    missing = [key for key in wanted if key not in pictures]
    log.info("class images: %d in the cache %s, %d to draw", len(pictures), folder, len(missing))
    if missing:
        _draw(cfg, base, missing, files)
        pictures |= {key: read_picture(files[key]) for key in missing}
    return [ClassImage(pictures[key], key[0]) for key in wanted]


def cache_place(cfg: Config, base: Base) -> Path:
    """The folder of all class images that differ in prompt and number alone; made, with a prior.json that says what
    its name stands for."""
    sampler = {name: value for name, value in asdict(cfg.sampler).items() if name not in NO_EFFECT}
    facts = {
        "base": fingerprint(base),
        "precision": str(base.dtype).removeprefix("torch."),
        "resolution": cfg.model.resolution,
        "sampler": sampler,
        "seed": cfg.prior.seed,
    }
    folder = cache_folder() / "prior" / _digest(json.dumps(facts, sort_keys=True).encode())[:24]
    with _written_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "prior.json").is_file():
            text = json.dumps(facts | {"model_when_first_drawn": base.path}, indent=2) + "\n"
            atomic_write(folder / "prior.json", text)
    return folder


def prompt_folder(prompt: str) -> str:
    return f"{slug(prompt)[:40]}-{_digest(prompt.encode('utf-8', 'surrogatepass'))[:12]}"


def fingerprint(base: Base) -> str:
    """A hash of what makes the base's images: every weight as it is in memory, the vocabulary, the noise schedule."""
    found = hashlib.sha256()
    second = [base.text_encoder_2] if base.is_sdxl else []
    for part in (base.text_encoder, base.unet, base.vae, *second):
        for name, tensor in sorted(part.state_dict().items()):
            found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
            found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    schedule = {key: value for key, value in base.scheduler.config.items() if not key.startswith("_")}
    rest = (sorted(base.tokenizer.get_vocab().items()), sorted(schedule.items(), key=str))
    found.update(repr(rest).encode())
    return found.hexdigest()


def _draw(cfg: Config, base: Base, missing: list[tuple[str, int]], files: dict[tuple[str, int], Path]) -> None:
    """Draw what is missing, a batch at a time, each written when it is drawn. In an order of its own, and looking
    again before each batch, so that processes that start together share the work instead of each doing all of it."""
    size = cfg.sampler.batch_size
    left = missing.copy()
    random.SystemRandom().shuffle(left)
    with progress(len(missing), "Drawing class images") as ticker:
        while left:
            batch, left = left[:size], left[size:]
            requests = [Request(prompt, index, image_seed(cfg.prior.seed, prompt, index)) for prompt, index in batch]
            images = sample(base, requests, cfg.sampler, resolution=cfg.model.resolution)
            for key, image in zip(batch, images, strict=True):
                _keep(image, files[key])
            unseen = [key for key in left if not files[key].is_file()]  # others may be drawing too
            ticker(len(batch) + len(left) - len(unseen))
            left = unseen


def _keep(image: Image.Image, file: Path) -> None:
    """Write beside, flush to disk, rename: a reader finds no image or a whole one."""
    with _written_to(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=file.parent, prefix=".", suffix=".partial")
        try:
            with os.fdopen(handle, "wb") as stream:
                image.save(stream, "png")
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(name, 0o644)
            os.replace(name, file)
        finally:
            Path(name).unlink(missing_ok=True)


def _cached(file: Path) -> Picture | None:
    """The picture, or None when it is not there or damaged; a damaged one is removed, to be drawn again."""
    if not file.is_file():
        return None
    try:
        return read_picture(file)
    except UserError as error:
        log.warning("drawn again: %s", error)
        file.unlink(missing_ok=True)
        return None


@contextmanager
def _written_to(folder: Path) -> Iterator[None]:
    """Turn a failed write into a sentence that names the cache."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"The class images can't be kept in {folder} ({reason}): set CDIFF_CACHE=DIR.") from error


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# ---- the user's own ----


def from_folder(cfg: Config, classes: Sequence[str]) -> list[ClassImage]:
    """At most `prior.count` images of `prior.images`, equal shares a class.

    Several classes have a folder each (DIR/dog, DIR/teapot). A text file of an image's name (dog1.txt) is its
    prompt; the others have the class prompt. What can't be read is skipped and named in the log.
    """
    conf = cfg.prior
    if not conf.images:
        raise UserError("prior=folder needs the folder of class images: prior.images=DIR.")
    if conf.captions:
        raise UserError("prior.captions goes with prior=generated; prior=folder reads a .txt beside each image.")
    root = Path(conf.images).expanduser()
    if not root.is_dir():
        raise UserError(f"prior.images={conf.images} is {'a file, not' if root.exists() else 'no'} folder of images.")
    folders = [root / word if (root / word).is_dir() else root for word in classes]
    if len(classes) > 1 and root in folders:
        lacking = ", ".join(word for word, folder in zip(classes, folders, strict=True) if folder == root)
        raise UserError(f"prior.images={root} needs a folder for each class of this run; it lacks {lacking}.")
    found = []
    for word, folder, share in zip(classes, folders, shares(conf.count, len(classes)), strict=True):
        prompt = class_prompts(PriorConfig(prompt=conf.prompt, count=1), [word])[0][0]
        own = _captioned(read_folder(folder, max_side=cfg.model.resolution), prompt)
        if not own:
            raise UserError(f"No class image in {folder} can be used: none of their .txt captions can be read.")
        used = own[:share]
        log.info("class images of '%s': %d of the %d in %s", word, len(used), len(own), folder)
        found += used
    return found


def _captioned(pictures: Sequence[Picture], prompt: str) -> list[ClassImage]:
    found = []
    for picture in pictures:
        try:
            found.append(ClassImage(picture, _caption_beside(picture.path) or prompt))
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            log.warning("skipped: the caption of %s can't be read (%s)", picture.path, reason)
    return found


def _caption_beside(path: Path) -> str:
    file = path.with_suffix(".txt")
    if not file.is_file():
        return ""
    text = " ".join(file.read_text(encoding="utf-8-sig").split())
    if found := TOKEN.search(text):
        raise UserError(f"The caption {file} names {found[0]}: class images show the class alone.")
    return text
