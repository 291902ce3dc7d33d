"""task=doctor: what this installation has, and what to fix.

    python -m cdiff task=doctor

Reads and measures; writes nothing. A token or key is looked for, and neither shown nor sent anywhere.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from cdiff import console
from cdiff.cache import cache_folder
from cdiff.errors import UserError
from cdiff.provenance import git_commit, versions
from cdiff.runs import OUTPUTS
from cdiff.schema import Config
from cdiff.tracking import wandb_mode

EXTRAS = {  # package -> what needs it
    "peft": "method=lora, and load_lora_weights in diffusers",
    "datasets": "concepts from the hub",
    "tensorboard": "logger=tensorboard",
}
LITTLE_DISK = 5e9  # bytes; a base of Stable Diffusion 1.5 takes 4 GB, a pocket run 10 MB
HUB_SECONDS = 3.0


@dataclass
class Findings:
    """Rows to show, and sentences on what to fix."""

    rows: dict[str, str] = field(default_factory=dict)
    fixes: list[str] = field(default_factory=list)


def run(cfg: Config) -> dict[str, Any]:
    """Look at everything. Returns the rows and what to fix."""
    found = Findings()
    for look in (look_at_versions, look_at_devices, look_at_caches, look_at_hub, look_at_wandb, look_at_weights):
        look(cfg, found)
    rows = dict(found.rows)
    if not found.fixes:
        rows["to fix"] = "nothing"
    for number, sentence in enumerate(found.fixes, 1):
        rows[f"to fix {number}"] = sentence
    console.summary("cdiff doctor", rows)
    return {"rows": found.rows, "fixes": found.fixes}


def look_at_versions(cfg: Config, found: Findings) -> None:
    """Installed packages against those that cdiff asks for."""
    commit = git_commit()
    there = versions()
    found.rows["cdiff"] = there.get("cdiff", "not installed as a package") + (
        f", commit {commit[:12]}" if commit else ""
    )
    found.rows["python"] = there["python"]
    others = [f"{name} {version}" for name, version in there.items() if name not in ("cdiff", "python")]
    found.rows["packages"] = ", ".join(others)
    found.fixes += [f'pip install "{wanted}": {name} {version} is installed.' for name, version, wanted in outdated()]
    for name, purpose in EXTRAS.items():
        if importlib.util.find_spec(name) is None:
            found.rows[name] = f"not installed; needed for {purpose}: pip install {name}"


def outdated() -> list[tuple[str, str, str]]:
    """(package, installed version, what cdiff asks for) of each requirement that does not hold."""
    from packaging.requirements import Requirement

    try:
        requirements = metadata.requires("cdiff") or []
    except metadata.PackageNotFoundError:
        return []
    found = []
    for text in requirements:
        wanted = Requirement(text)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            version = "no version"
        if version == "no version" or not wanted.specifier.contains(version, prereleases=True):
            found.append((wanted.name, version, f"{wanted.name}{wanted.specifier}"))
    return found


def look_at_devices(cfg: Config, found: Findings) -> None:
    """GPUs with their memory, and which precisions work on the device that `device=` names."""
    import torch

    from cdiff.models import DTYPES, resolve_device, resolve_precision

    try:
        device = resolve_device(cfg.device)
    except UserError as error:
        found.fixes.append(str(error))
        device = torch.device("cpu")
    found.rows["torch"] = f"{torch.__version__}, {torch.get_num_threads()} threads of {os.cpu_count()} cores"
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for number in range(count):
        free, total = torch.cuda.mem_get_info(number)
        name = torch.cuda.get_device_name(number)
        found.rows[f"GPU {number}"] = f"{name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
    if not count:
        found.rows["GPU"] = "none that torch can use: model=pocket runs on the CPU, real models need one"
        if shutil.which("nvidia-smi"):
            found.fixes.append(f"nvidia-smi is here, and torch {torch.__version__} finds no GPU: install a CUDA build.")
    works = []
    for precision in DTYPES:
        try:
            works.append(resolve_precision(precision, device))
        except UserError:
            continue
    found.rows["precision"] = f"{', '.join(works)} on {device}; auto is {resolve_precision('auto', device)}"


def look_at_caches(cfg: Config, found: Findings) -> None:
    """Where things are kept, how much there is, and whether it can be written."""
    from huggingface_hub import constants

    places = {"cdiff's cache": cache_folder(), "hub's cache": Path(constants.HF_HUB_CACHE), "runs": OUTPUTS.absolute()}
    for name, folder in places.items():
        home = nearest(folder)
        free = shutil.disk_usage(home).free
        size = f"{size_of(folder) / 1e9:.2f} GB" if folder.is_dir() else "not made yet"
        found.rows[name] = f"{folder}: {size}, {free / 1e9:.0f} GB free"
        if not os.access(home, os.W_OK):
            how = {"cdiff's cache": "CDIFF_CACHE=DIR", "hub's cache": "HF_HOME=DIR"}.get(name, "output=DIR")
            found.fixes.append(f"{home} can't be written: set {how}.")
        elif free < LITTLE_DISK:
            found.fixes.append(f"{home} has {free / 1e9:.1f} GB left: too little for a real model.")


def nearest(folder: Path) -> Path:
    """The folder, or the first of its parents that exists."""
    return next(place for place in (folder, *folder.parents) if place.exists())


def size_of(folder: Path) -> int:
    """Bytes of the files below a folder; links count nothing."""
    total = 0
    for home, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(home, name)
            if not os.path.islink(path):
                total += os.path.getsize(path) if os.path.exists(path) else 0
    return total


def look_at_hub(cfg: Config, found: Findings) -> None:
    """Whether the hub answers, and whether a token is there."""
    from huggingface_hub import constants, get_token

    token = (
        "a token is stored" if get_token() else "no token: public models only; `hf auth login` for gated ones and push"
    )
    if constants.HF_HUB_OFFLINE:
        found.rows["hub"] = f"offline (HF_HUB_OFFLINE is set): cached models alone; {token}"
        return
    found.rows["hub"] = f"{constants.ENDPOINT} {answer_of(constants.ENDPOINT)}; {token}"
    if "no answer" in found.rows["hub"]:
        found.fixes.append("The hub does not answer: real models must be in its cache, or be named by model.path=DIR.")


def answer_of(address: str) -> str:
    """ "answers" or "gives no answer (why)"."""
    request = urllib.request.Request(address, method="HEAD", headers={"User-Agent": "cdiff"})
    try:
        with urllib.request.urlopen(request, timeout=HUB_SECONDS):
            return "answers"
    except urllib.error.HTTPError:
        return "answers"  # whatever the page says, somebody is there
    except (OSError, ValueError) as error:
        return f"gives no answer ({getattr(error, 'reason', error)})"


def look_at_wandb(cfg: Config, found: Findings) -> None:
    """In which mode logger=wandb would log."""
    if importlib.util.find_spec("wandb") is None:
        found.fixes.append("wandb is not installed: pip install wandb, or say logger=none.")
        return
    mode = wandb_mode("auto")
    why = {"online": "logged in", "offline": "not logged in: `wandb login`, or `wandb sync` a run's folder later"}
    found.rows["wandb"] = f"{mode}; {why.get(mode, 'as WANDB_MODE says')}"


def look_at_weights(cfg: Config, found: Findings) -> None:
    """Whether the pocket models came with the package."""
    from cdiff.pocket import weights_folder

    try:
        found.rows["pocket base"] = str(weights_folder("base"))
    except UserError as error:
        found.fixes.append(str(error))
