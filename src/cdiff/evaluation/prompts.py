"""The text that an image is compared with: its prompt without the tokens that no metric model knows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

RULES = ("drop", "keep", "class")
TOKEN = re.compile(r"<[^<>\s]+>")


def metric_text(prompt: str, rule: str, classes: Mapping[str, str] | None = None, tokens: Iterable[str] = ()) -> str:
    """The prompt as the text metrics see it.

    drop:  "a <new1> dog on the beach" -> "a dog on the beach" (CustomConcept101's and ClassDiffusion's way).
    class: as drop, but a token that stands alone becomes its class: "a <new1> on the beach" -> "a dog on the beach".
    keep:  as it is.

    A prompt of nothing but tokens becomes their class words, or stays as it is when these are not known.

    Args:
        classes: token -> class word; tokens in angle brackets are dropped whether they stand here or not.
        tokens: further words to drop, without brackets ("sks").
    """
    if rule == "keep":
        return prompt
    assert rule == "drop" or rule == "class", rule
    classes = dict(classes or {})
    plain = _without_tokens(prompt, classes if rule == "class" else {}, tokens)
    return plain if re.search(r"\w", plain) else _without_tokens(prompt, classes, tokens) or prompt


def _without_tokens(prompt: str, classes: Mapping[str, str], tokens: Iterable[str]) -> str:
    words = [
        re.escape(word) for word in sorted({*tokens, *classes}, key=len, reverse=True) if not TOKEN.fullmatch(word)
    ]
    pattern = TOKEN.pattern + (rf"|(?<![\w<])(?:{'|'.join(words)})(?![\w>])" if words else "")

    def replacement(match: re.Match) -> str:
        word = classes.get(match[0], "")
        followed = re.match(rf"\s*{re.escape(word)}(?!\w)", prompt[match.end() :], re.IGNORECASE)
        return " " if followed else f" {word} "

    text = re.sub(rf"(?:{pattern})(?:'s(?!\w))?", replacement, prompt)
    text = re.sub(r"\s+", " ", text)
    text = re.sub(r" (?=[,.;:!?](?:\s|$))", "", text)  # the gap that a token leaves in front of a full stop
    return text.strip()
