"""task=export: a finished run in another tool's format.

    python -m cdiff task=export run=latest format=diffusers
    python -m cdiff task=export run=FOLDER format=lora export.rank=32
    python -m cdiff task=export run=FOLDER format=hub repo=me/rex push=true

The files go to RUN/export/FORMAT or `export.folder`, with export.json: what was exported, how to load it, and of a LoRA
the error of each layer.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from cdiff import console
from cdiff.adapter import Adapter, load_adapter
from cdiff.errors import UserError
from cdiff.export.fitting import check_fit
from cdiff.export.folder import new_folder, refuse_existing
from cdiff.export.writing import WRITERS, Written
from cdiff.finding import find_run
from cdiff.models import DTYPES, Base, load_base
from cdiff.provenance import versions
from cdiff.runs import Run
from cdiff.schema import Config

LARGE = 0.05  # an error of a layer that is worth a warning


def run(cfg: Config) -> dict[str, Any]:
    """Export one run. Returns the folder, and of a LoRA rank and errors."""
    if isinstance(cfg.run, list) and len(cfg.run) != 1:
        raise UserError(f"task=export takes one run, got {len(cfg.run)}: say run=latest or run=FOLDER.")
    source = find_run(cfg.run[0] if isinstance(cfg.run, list) else cfg.run, concept=list(cfg.concepts))
    adapter = load_adapter(source.folder / "adapter")
    check_fit(adapter, cfg.format)
    target = Path(cfg.export.folder) if cfg.export.folder else source.folder / "export" / cfg.format
    refuse_existing(target)
    if cfg.format == "hub":
        from cdiff.export.hub import export_to_hub

        return export_to_hub(cfg, source, adapter, target)
    base = open_base(cfg, source, adapter)
    with new_folder(target) as folder:
        written = WRITERS[cfg.format](base, adapter, cfg, folder, name_of(adapter))
        write_facts(folder / "export.json", cfg, source, adapter, written)
    console.summary("Done", panel(source, target, written))
    return {"folder": str(target), "format": cfg.format, "rank": written.rank, "errors": written.errors}


def open_base(cfg: Config, source: Run, adapter: Adapter) -> Base:
    """The untouched base on the CPU, in fp32; for a LoRA rounded as it was in training, since what was learned is the
    difference to that."""
    there = adapter.info.get("base_model", cfg.model.path)
    if there != cfg.model.path:
        console.warn(f"the adapter was trained on {there} and is exported with {cfg.model.path}")
    precision = source.info.get("precision", "fp32") if cfg.format in ("lora", "kohya") else "fp32"
    return load_base(cfg.model, DTYPES[precision], "cpu")


def name_of(adapter: Adapter) -> str:
    """A file name for the adapter: its concepts'."""
    names = [str(concept.get("name", "")) for concept in adapter.info.get("concepts", [])]
    return "_".join(name for name in names if name) or "adapter"


def write_facts(file: Path, cfg: Config, source: Run, adapter: Adapter, written: Written) -> None:
    """export.json."""
    facts = {
        "format": cfg.format,
        "run": source.folder.name,
        "base_model": adapter.info.get("base_model"),
        "revision": adapter.info.get("revision"),
        "method": adapter.info.get("method"),
        "concepts": adapter.info.get("concepts"),
        "precision": cfg.export.precision,
        "files": written.files,
        "usage": written.usage.splitlines(),
        **written.facts,
        **({"rank": written.rank, "errors": written.errors} if written.rank is not None else {}),
        "versions": versions(),
    }
    file.write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def panel(source: Run, target: Path, written: Written) -> dict[str, object]:
    """What was written, how well it fits, how to load it."""
    rows: dict[str, object] = {"run": source.folder, "files": f"{', '.join(written.files)} in {target}"}
    if written.rank is not None:
        worst = max(written.errors, key=written.errors.get)
        middle = statistics.median(written.errors.values())
        rows["rank"] = written.rank
        rows["error"] = f"median {middle:.1e}, worst {written.errors[worst]:.1e} of {worst}; each layer in export.json"
        if written.errors[worst] > LARGE:
            console.warn(
                f"rank {written.rank} leaves out up to {written.errors[worst]:.0%} of a layer's change: images will "
                "differ from the run's; a higher export.rank or a lower export.tolerance leaves out less"
            )
    lines = written.usage.replace("DIR", str(target)).splitlines()
    return rows | {f"load {number}": line for number, line in enumerate(lines, 1)}
