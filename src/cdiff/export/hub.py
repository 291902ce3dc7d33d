"""A run as a repository of the Hugging Face hub: the folder, and on request the upload.

What goes in: a LoRA and the tokens where the base can be had from the hub and a LoRA holds what was trained; else a
whole pipeline. The token of the account is the hub library's own affair: it is neither read, shown nor stored here.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from cdiff import console
from cdiff.adapter import Adapter
from cdiff.base_files import first_line
from cdiff.errors import UserError
from cdiff.export.card import Shown, is_hub_id, model_card, scores_of
from cdiff.export.fitting import misfit
from cdiff.export.folder import new_folder
from cdiff.export.writing import WRITERS, Written, prompt, token_lines
from cdiff.models import DTYPES, load_base
from cdiff.provenance import versions
from cdiff.runs import Run
from cdiff.schema import Config


def export_to_hub(cfg: Config, source: Run, adapter: Adapter, target: Path) -> dict[str, Any]:
    """Write the folder; with `push` upload it.

    Raises:
        UserError: the folder is there already, or the upload failed (the folder is then whole, and says how to go on).
    """
    kind = content_of(adapter)
    precision = source.info.get("precision", "fp32") if kind == "lora" else "fp32"
    base = load_base(cfg.model, DTYPES[precision], "cpu")
    with new_folder(target) as folder:
        written = WRITERS[kind](base, adapter, cfg, folder, "adapter")
        pictures = copy_pictures(source.folder / "samples", folder, cfg.export.images)
        lines = loading_lines(kind, cfg, adapter, base.is_sdxl)
        extra = notes(kind, written)
        card = model_card(str(cfg.repo), adapter.info, told(source), lines, pictures, scores_of(source.folder), extra)
        (folder / "README.md").write_text(card, encoding="utf-8")
        facts = {"format": "hub", "content": kind, "repo": cfg.repo, "versions": versions()}
        (folder / "export.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    url = push(str(cfg.repo), target) if cfg.push else None
    rows = {
        "holds": "a LoRA and the tokens" if kind == "lora" else "a whole pipeline",
        "folder": target,
        "hub": url or f"nothing was uploaded; push=true does, or: hf upload {cfg.repo} {target}",
    }
    console.summary("Done", rows)
    return {"folder": str(target), "format": "hub", "content": kind, "url": url}


def content_of(adapter: Adapter) -> str:
    """`lora` or `diffusers`: what the repository holds."""
    base = str(adapter.info.get("base_model", ""))
    return "lora" if is_hub_id(base) and misfit(adapter, "lora") is None else "diffusers"


def loading_lines(kind: str, cfg: Config, adapter: Adapter, is_sdxl: bool) -> list[str]:
    """Python that draws the concept with stock diffusers, by way of the hub."""
    pipeline = "StableDiffusionXLPipeline" if is_sdxl else "StableDiffusionPipeline"
    lines = [f"from diffusers import {pipeline}"]
    if kind == "diffusers":
        lines.append(f'pipe = {pipeline}.from_pretrained("{cfg.repo}")')
    else:
        revision = f', revision="{adapter.info["revision"]}"' if adapter.info.get("revision") else ""
        lines.append(f'pipe = {pipeline}.from_pretrained("{adapter.info["base_model"]}"{revision})')
        lines.append(f'pipe.load_lora_weights("{cfg.repo}")')
        if is_sdxl:
            lines.insert(0, "import safetensors.torch\nfrom huggingface_hub import hf_hub_download")
        lines += token_lines(adapter, str(cfg.repo), on_hub=True)
    return [*lines, f'image = pipe("{prompt(adapter)}").images[0]']


def notes(kind: str, written: Written) -> list[str]:
    """What a reader should know before loading."""
    if kind != "lora":
        return ["A whole pipeline with the learned weights merged in."]
    worst = max(written.errors.values())
    return [
        f"`load_lora_weights` needs `pip install peft`. The LoRA has rank {written.rank}; it leaves out at most "
        f"{worst:.1e} of any layer's learned change (relative, Frobenius)."
    ]


def copy_pictures(samples: Path, folder: Path, most: int) -> list[Shown]:
    """The first picture of each of the run's prompts, at most `most`, under images/."""
    try:
        index = json.loads((samples / "prompts.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    first: dict[str, str] = {}
    for name, entry in index.items():
        first.setdefault(entry["prompt"], name)
    shown = [(text, name) for text, name in first.items() if (samples / name).is_file()][:most]
    if shown:
        (folder / "images").mkdir()
    for _, name in shown:
        shutil.copyfile(samples / name, folder / "images" / name)
    return [Shown(f"images/{name}", text) for text, name in shown]


def told(source: Run) -> dict[str, Any]:
    """The settings that the card tells; no path of the user's machine."""
    cfg = source.config()
    return {
        "method": cfg.method.name,
        "steps": cfg.train.steps,
        "batch size": cfg.train.batch_size,
        "learning rate": f"{cfg.optimizer.learning_rate:g}",
        "SPL weight": f"{cfg.loss.spl_weight:g}",
        "prior preservation": cfg.prior.name,
        "resolution": cfg.model.resolution,
        "seed": cfg.seed,
        "precision": source.info.get("precision", ""),
        "trained": str(source.info.get("finished", ""))[:10],
        "cdiff": source.info.get("versions", {}).get("cdiff", ""),
    }


def push(repo: str, folder: Path) -> str:
    """Upload the folder as one commit, making the repository when it is missing. Returns its address.

    Raises:
        UserError: not logged in, no right to write there, or the hub can't be reached.
    """
    from huggingface_hub import HfApi, errors

    again = f"the folder is whole: {folder}; upload it later with `hf upload {repo} {folder}`"
    try:
        api = HfApi()
        api.create_repo(repo, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Export of a cdiff run")
        return f"{api.endpoint}/{repo}"
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status == 401:
            raise UserError(f"The hub does not know you: log in with `hf auth login`; {again}.") from error
        if status == 403:
            raise UserError(
                f"The hub lets you not write to {repo}: check the name and the token's rights; {again}."
            ) from error
        raise UserError(f"The hub refused {repo} (HTTP {status}); {again}.") from error
    except Exception as error:  # the network, in the words of several libraries
        raise UserError(f"{repo} can't be uploaded ({type(error).__name__}: {first_line(error)}); {again}.") from error
