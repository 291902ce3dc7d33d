"""Captions of training images: templates, the words for the scale of a view, token and class word."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from pathlib import Path

from cdiff.errors import UserError

# In the manner of Textual Inversion (arXiv 2208.01618): neutral about the scene and, as the views are
# scaled, about size too. "{}" is the subject.
OBJECT_TEMPLATES = (
    "a photo of a {}",
    "a photo of the {}",
    "a photo of one {}",
    "a photo of my {}",
    "a picture of a {}",
    "a picture of the {}",
    "an image of a {}",
    "an image of the {}",
    "a good photo of a {}",
    "a good photo of the {}",
    "a good picture of a {}",
    "a nice photo of a {}",
    "a nice picture of the {}",
    "a clear photo of a {}",
    "a clear picture of the {}",
    "a rendering of a {}",
    "a rendering of the {}",
    "a depiction of a {}",
)
TEMPLATES = {"object": OBJECT_TEMPLATES, "plain": ("photo of a {}",)}  # plain: Custom Diffusion's one caption


def load_templates(name: str) -> tuple[str, ...]:
    """The templates called `name`, or those of the file `name`: one a line, each with {} for the subject.

    Empty lines and lines that begin with # are passed over. Raises UserError for anything else.
    """
    if name in TEMPLATES:
        return TEMPLATES[name]
    path = Path(name).expanduser()
    if not path.is_file():
        known = ", ".join(TEMPLATES)
        raise UserError(f"train.prompt_templates={name} is neither {known} nor a file with one template a line.")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The templates file {path} can't be read as UTF-8 text ({error}).") from error
    templates = tuple(line for line in lines if line and not line.startswith("#"))
    for number, line in enumerate(lines, 1):
        if line in templates and "{}" not in line:
            raise UserError(f"Line {number} of the templates file {path} has no {{}} for the subject: {line!r}.")
    if not templates:
        raise UserError(f"The templates file {path} has no template: write one a line, such as 'a photo of a {{}}'.")
    return templates


def caption(
    seed: int | str, index: int, templates: Sequence[str], token: str, class_word: str, prefix: str = ""
) -> str:
    """The caption of view `index`: a template drawn by (seed, index), the scale's words, "<new1> dog".

    An empty `token` gives the class's own caption, for prior images.
    """
    template = random.Random(f"{seed}/{index}/caption").choice(templates)
    subject = f"{token} {class_word}".strip()
    if subject[:1].lower() in tuple("aeiou"):
        template = re.sub(r"\b([Aa]) \{\}", r"\1n {}", template)
    return with_prefix(template, prefix).replace("{}", subject)


def class_caption(seed: int | str, index: int, templates: Sequence[str], class_word: str) -> str:
    """The caption of a class image, which shows no concept: "a photo of a dog"."""
    return caption(seed, index, templates, "", class_word)


def with_prefix(text: str, prefix: str) -> str:
    """`text` with `prefix` in front, under one article.

    "photo of a dog" becomes "zoomed in photo of a dog" as released, "a photo of a dog" "a zoomed in photo of a dog".
    """
    if not prefix:
        return text
    article = re.match(r"(a)n? |(the) ", text, re.IGNORECASE)
    if not article:
        return f"{prefix} {text}"
    words = re.sub(r"^(an?|the) ", "", prefix)
    return f"{article[1] or article[2]} {words} {text[article.end() :]}"
