"""task=merge: the concepts of several finished runs in one adapter, without training (cdiff.merging, docs/merge.md)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cdiff import console, merging
from cdiff.adapter import Adapter, adapter_name, apply_adapter, load_adapter, match_unet, parameter_name, save_adapter
from cdiff.concepts import normalize_token
from cdiff.devices import process_device
from cdiff.drawing import TOKEN, default_prompts
from cdiff.errors import UserError
from cdiff.finding import find_run
from cdiff.models import Base, load_base
from cdiff.runs import Run, atomic_write
from cdiff.schema import ConceptConfig, Config
from cdiff.tokens import PromptEncoder, eos_positions

GOOD_RESIDUAL = 1e-4
TEXT_BATCH = 64
MOST = 0.5  # constraints of the built-in prompts, as a share of the text features' dimensions
MERGEABLE = ("to_k.weight", "to_v.weight")


@dataclass(frozen=True)
class Part:
    """A concept of one of the runs, as it will be in the merged adapter."""

    name: str
    token: str
    class_word: str
    initializer: str
    config: ConceptConfig
    vector: Tensor  # (D,)


@dataclass(frozen=True)
class Finished:
    """One of `runs`: its adapter, and the concepts' settings where it is a run's folder."""

    spec: str
    adapter: Adapter
    past: Config | None


def run(cfg: Config) -> dict[str, Any]:
    """Merge `cfg.runs`. The new run's folder holds an adapter like any other, and merge.json with the residuals."""
    finished = [read(spec) for spec in cfg.runs]
    check_mergeable(finished)
    parts = renamed(finished, cfg.merge.rename)
    captions = read_captions(cfg.merge.captions) if cfg.merge.captions else merging.general_captions()
    concepts = {part.name: part.config for own in parts for part in own}
    cfg = replace(cfg, concept=ConceptConfig(), concepts=concepts)
    run = Run.start(cfg, "merge")
    with run.timed("load"):
        device = process_device(cfg.device)
        run.note(device=str(device), precision="fp32", merged=[str(item.adapter.path) for item in finished])
        base = load_base(cfg.model, torch.float32, device)
        warn_of_other_base(finished, base)
    with run.timed("merge"):
        result, prompts = merge_into(base, finished, parts, cfg.merge.prompts, captions)
    together = [part for own in parts for part in own]
    info = adapter_info(cfg, finished, together, result)
    weights = {adapter_name(name): weight.float() for name, weight in result.weights.items()}
    adapter = save_adapter(run.folder / "adapter", weights, {part.token: part.vector for part in together}, info)
    write_report(run.folder / "merge.json", result, prompts, len(captions))
    worst = max(result.residuals.values())
    if worst > GOOD_RESIDUAL:
        console.warn(
            f"the runs' constraints are met to {worst:.1e} only (relative), at worst: they contradict one another; "
            "look at the samples of each concept, or train the concepts jointly"
        )
    console.summary("Done", panel(together, result, run, adapter))
    outcome = {"folder": str(run.folder), "adapter": str(adapter), "residual": worst}
    run.finish(outcome)
    return outcome


# ---- what is merged ----


def read(spec: str) -> Finished:
    """A finished run, or a folder that holds an adapter and its adapter.json.

    Raises:
        UserError: the run is not finished, or has no adapter that says what it is.
    """
    folder = Path(spec).expanduser()
    is_run = spec == "latest" or (folder / "run.json").is_file() or not folder.is_dir()
    found = find_run(spec) if is_run else None
    adapter = load_adapter(found.folder / "adapter" if found else folder)
    if not adapter.info.get("base_model") or not adapter.info.get("concepts"):
        raise UserError(f"{adapter.path} has no adapter.json that tells its base model and class words: not merged.")
    return Finished(spec, adapter, found.config() if found else None)


def check_mergeable(finished: Sequence[Finished]) -> None:
    """One base, and K/V of cross-attention alone. Raises UserError."""
    first = finished[0].adapter.info
    for item in finished:
        info, where = item.adapter.info, item.adapter.path
        for key in ("base_model", "revision"):
            if info.get(key) != first.get(key):
                raise UserError(
                    f"{finished[0].spec} and {item.spec} are runs of different base models "
                    f"({first.get(key)} and {info.get(key)}): only runs of one base can be merged."
                )
        parameters = [parameter_name(name) or name for name in item.adapter.unet]
        others = sorted({name for name in parameters if not (".attn2." in name and name.endswith(MERGEABLE))})
        method = info.get("method", "unknown")
        whole = item.adapter.kind != "custom_diffusion" or item.adapter.text_encoder
        if whole or len(others) == len(set(parameters)):
            raise UserError(
                f"{where} has no cross-attention keys and values of its own (method={method}): "
                "merge runs of class_diffusion or custom_diffusion."
            )
        if others:
            raise UserError(
                f"{where} trained more than keys and values ({others[0]}, ...), which can't be merged: "
                "train it with method.train_unet=crossattn_kv."
            )
        if missing := [c["token"] for c in info["concepts"] if c["token"] not in item.adapter.tokens]:
            raise UserError(f"{where} lacks the token {missing[0]} of its concept.")


def renamed(finished: Sequence[Finished], rename: bool) -> list[list[Part]]:
    """The concepts of each run, their names and tokens made unique.

    Raises:
        UserError: two share a token and `rename` is off.
    """
    kept = {str(c["token"]).lower() for item in finished for c in item.adapter.info["concepts"]}
    tokens: dict[str, str] = {}  # in lower case, as the tokenizer sees it -> the run that has it
    names: set[str] = set()
    parts = []
    for item in finished:
        own = []
        for concept in item.adapter.info["concepts"]:
            token = normalize_token(concept["token"])
            if token.lower() in tokens:
                if not rename:
                    raise UserError(
                        f"{tokens[token.lower()]} and {item.spec} have the same token {token}: "
                        "say merge.rename=true to give the later one another."
                    )
                token = _free_token(kept | set(tokens))
            tokens[token.lower()] = item.spec
            name = _free_name(concept.get("name") or concept["class_word"], names)
            names.add(name)
            own.append(_part(item, concept, name, token))
        parts.append(own)
    return parts


def _part(item: Finished, concept: dict[str, str], name: str, token: str) -> Part:
    word = concept["class_word"]
    settings = ConceptConfig()
    if item.past is not None and concept.get("name") in item.past.concepts:
        shared, settings = item.past.concept, item.past.concepts[concept["name"]]
        settings = replace(
            settings,
            images=settings.images if shared.images is None else shared.images,
            sources=settings.sources | shared.sources,
        )
    initializer = concept.get("initializer") or word
    settings = replace(settings, token=token, class_word=word, initializer=initializer)
    return Part(name, token, word, initializer, settings, item.adapter.tokens[concept["token"]].float())


def _free_token(taken: set[str]) -> str:
    number = 1
    while f"<new{number}>" in taken:
        number += 1
    return f"<new{number}>"


def _free_name(name: str, taken: set[str]) -> str:
    number, found = 1, name
    while found in taken:
        number += 1
        found = f"{name}-{number}"
    return found


def read_captions(file: str) -> list[str]:
    """One caption a line. Raises UserError."""
    path = Path(file).expanduser()
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise UserError(f"merge.captions={path} is not UTF-8 text; save it as UTF-8, one caption a line.") from error
    except OSError as error:
        raise UserError(f"merge.captions={path} can't be read ({error.strerror or error}).") from error
    captions = list(dict.fromkeys(line for line in lines if line and not line.startswith("#")))
    if not captions:
        raise UserError(f"merge.captions={path} holds no caption; write one a line.")
    for caption in captions:
        if found := TOKEN.search(caption):
            raise UserError(f"merge.captions={path}: '{caption}' names {found[0]}; captions are in the base's words.")
    return captions


def warn_of_other_base(finished: Sequence[Finished], base: Base) -> None:
    there = finished[0].adapter.info["base_model"]
    if there != base.path:
        console.warn(f"the runs were trained on {there} and are merged on {base.path}")


# ---- merging ----


def merge_into(
    base: Base,
    finished: Sequence[Finished],
    parts: Sequence[Sequence[Part]],
    prompts: Sequence[str],
    captions: Sequence[str],
) -> tuple[merging.Merged, list[str]]:
    """Features of all prompts in the base's text encoder, then the closed form for every K and V.

    prompts: the concepts'; empty takes as many of the built-in ones as leave the base room. Returns those taken, too.
    """
    names = {id(parameter): name for name, parameter in base.unet.named_parameters()}
    weights = [
        {names[id(parameter)]: value.cpu() for parameter, value in match_unet(base.unet, item.adapter)}
        for item in finished
    ]
    known = base.unet.state_dict()
    before = {name: known[name].cpu() for name in weights[0]}
    apply_adapter(base, Adapter({}, {part.token: part.vector for own in parts for part in own}))
    encoder = PromptEncoder(base)
    new_from = min(base.tokenizer.convert_tokens_to_ids(part.token) for own in parts for part in own)

    def features(own: Sequence[Part], wanted: Sequence[str]) -> Tensor:
        texts = [prompt.replace("{}", f"{part.token} {part.class_word}") for part in own for prompt in wanted]
        return columns(encoder, texts, new_from)

    taken = list(prompts or merging.CONCEPT_PROMPTS)
    every = [part for own in parts for part in own]
    while not prompts and len(taken) > 1 and features(every, taken).shape[1] > encoder.table.shape[1] * MOST:
        taken.pop()
    sources = [merging.Source(features(own, taken), tensors) for own, tensors in zip(parts, weights, strict=True)]
    return merging.merge(before, sources, columns(encoder, captions)), taken


def columns(encoder: PromptEncoder, texts: Sequence[str], new_from: int | None = None) -> Tensor:
    """Hidden states of the texts as columns (D, n), on the CPU: from the start, or with `new_from` from the first
    token with such an id (what stands before it is the same for every concept), to the end-of-text token. Padding
    repeats that token and is left out."""
    found = []
    for start in range(0, len(texts), TEXT_BATCH):
        encoded = encoder.encode_sample(texts[start : start + TEXT_BATCH])
        ends = eos_positions(encoded.ids, encoder.eos_id).tolist()
        for hidden, ids, end in zip(encoded.hidden.cpu(), encoded.ids.cpu(), ends, strict=True):
            first = 0 if new_from is None else int((ids >= new_from).int().argmax())
            found.append(hidden[first : end + 1])
    return torch.cat(found).T


# ---- what is told ----


def adapter_info(
    cfg: Config, finished: Sequence[Finished], parts: Sequence[Part], result: merging.Merged
) -> dict[str, Any]:
    """What adapter.json says beside tokens and versions."""
    first = finished[0].adapter.info
    return {
        "base_model": first["base_model"],
        "revision": first.get("revision"),
        "token_widths": first.get("token_widths"),
        "resolution": cfg.model.resolution,
        "method": "merge",
        "concepts": [
            {"name": p.name, "token": p.token, "class_word": p.class_word, "initializer": p.initializer} for p in parts
        ],
        "merged": [str(item.adapter.path) for item in finished],
        "residual": max(result.residuals.values()),
    }


def write_report(file: Path, result: merging.Merged, prompts: Sequence[str], captions: int) -> None:
    report = {
        "residual_max": max(result.residuals.values()),
        "constraints": result.columns,
        "rank": result.rank,
        "general_captions": captions,
        "prompts": list(prompts),
        "residuals": result.residuals,
    }
    atomic_write(file, json.dumps(report, indent=2) + "\n")


def panel(parts: Sequence[Part], result: merging.Merged, run: Run, adapter: Path) -> dict[str, str]:
    prompt = default_prompts(parts)[-1]
    return {
        "merged": ", ".join(f"{part.token} {part.class_word} ({part.name})" for part in parts),
        "residual": f"{max(result.residuals.values()):.1e} relative, the worst of {len(result.residuals)} weights",
        "constraints": f"{result.columns}, of rank {result.rank}",
        "seconds": ", ".join(f"{name} {seconds:.1f}" for name, seconds in run.info["timings"].items()),
        "adapter": str(adapter),
        "next": f"""python -m cdiff task=sample run={adapter.parent} "prompt='{prompt}'\"""",
    }
