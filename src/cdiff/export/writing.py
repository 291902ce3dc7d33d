"""One function a format: from a run's adapter to files in a folder. Each returns what there is to tell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file
from torch import Tensor

from cdiff.adapter import LORA_FILE, TOKEN_PARTS, Adapter
from cdiff.export.differences import low_rank
from cdiff.export.embeddings import file_name, write_embeddings
from cdiff.export.kohya import kohya_tensors
from cdiff.export.pipeline import write_pipeline
from cdiff.export.release import write_release
from cdiff.models import DTYPES

if TYPE_CHECKING:
    from cdiff.export.low_rank import LowRank
    from cdiff.models import Base
    from cdiff.schema import Config


@dataclass
class Written:
    """What an export wrote: file names, the lines that load it, and of a LoRA its rank and errors."""

    files: list[str]
    usage: str  # a few lines for export.json and the panel
    rank: int | None = None
    errors: dict[str, float] = field(default_factory=dict)  # layer -> |W - W_rank| / |W - W0|
    facts: dict[str, Any] = field(default_factory=dict)


def write_diffusers(base: Base, adapter: Adapter, cfg: Config, folder: Path, name: str) -> Written:
    """A whole pipeline."""
    if cfg.export.precision == "fp16":
        for part in base.models():
            part.half()
    kind = write_pipeline(base, adapter, cfg.sampler, folder)
    usage = (
        f'pipe = {kind}.from_pretrained("DIR")\n'
        f'pipe("{prompt(adapter)}", num_inference_steps={cfg.sampler.steps}, '
        f"guidance_scale={cfg.sampler.guidance_scale:g})"
    )
    return Written(sorted(path.name for path in folder.iterdir()), usage, facts={"pipeline": kind})


def write_lora(base: Base, adapter: Adapter, cfg: Config, folder: Path, name: str) -> Written:
    """diffusers' LoRA file, and a file a token. Without an alpha the update is up @ down in every version of it."""
    found = low_rank(base, adapter, cfg.export.rank, cfg.export.tolerance)
    sides = {
        f"unet.{layer}.lora.{side}.weight": tensor
        for layer, (down, up) in found.layers.items()
        for side, tensor in (("down", down), ("up", up))
    }
    _save(sides, cfg, folder / f"{LORA_FILE}.safetensors", {"format": "pt"})
    tokens = write_embeddings(adapter, folder)
    usage = "\n".join(['pipe.load_lora_weights("DIR")', *token_lines(adapter, "DIR"), f'pipe("{prompt(adapter)}")'])
    return _written(found, [f"{LORA_FILE}.safetensors", *tokens.values()], usage)


def write_kohya(base: Base, adapter: Adapter, cfg: Config, folder: Path, name: str) -> Written:
    """kohya's LoRA file NAME.safetensors, and embeddings/TOKEN.safetensors."""
    files = [f"embeddings/{file}" for file in write_embeddings(adapter, folder / "embeddings", "emb_params").values()]
    words = ", ".join(file_name(token).removesuffix(".safetensors") for token in adapter.tokens)
    usage = (
        f"embeddings/ goes to ComfyUI's models/embeddings or A1111's embeddings; in prompts write embedding:{words} "
        f"(ComfyUI) or {words} (A1111) for {', '.join(adapter.tokens)}"
    )
    if not adapter.unet:
        return Written(files, usage)
    found = low_rank(base, adapter, cfg.export.rank, cfg.export.tolerance)
    sdxl = base.is_sdxl
    tensors = kohya_tensors(found, sdxl, base.unet.config.layers_per_block)
    facts = {
        "format": "pt",
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(found.rank),
        "ss_network_alpha": str(found.rank),
        "ss_base_model_version": "sdxl_base_v1-0" if sdxl else _version(base),
    }
    _save(tensors, cfg, folder / f"{name}.safetensors", facts)
    usage = f"{name}.safetensors goes to models/loras (ComfyUI) or models/Lora (A1111), strength 1\n{usage}"
    return _written(found, [f"{name}.safetensors", *files], usage)


def write_released(base: Base, adapter: Adapter, cfg: Config, folder: Path, name: str) -> Written:
    """The release's own files."""
    files = write_release(adapter, base.unet.attn_processors, folder)
    loads = [f'pipe.load_textual_inversion("DIR", weight_name="{token}.bin")' for token in adapter.tokens]
    if adapter.unet:
        # without _pipeline diffusers reads the file, changes nothing and says nothing
        loads.insert(0, f'pipe.unet.load_attn_procs("DIR", weight_name="{files[0]}", _pipeline=pipe)')
    return Written(files, "\n".join(loads))


WRITERS: dict[str, Callable[[Base, Adapter, Config, Path, str], Written]] = {
    "diffusers": write_diffusers,
    "lora": write_lora,
    "kohya": write_kohya,
    "release": write_released,
}


def prompt(adapter: Adapter) -> str:
    """A prompt that shows the first concept."""
    concepts = adapter.info.get("concepts") or [{"token": token, "class_word": ""} for token in adapter.tokens]
    return f"a {concepts[0]['token']} {concepts[0].get('class_word', '')}".strip() + " on the beach"


def token_lines(adapter: Adapter, where: str, on_hub: bool = False) -> list[str]:
    """Python lines that put the tokens into `pipe`; `where`: a folder, or with `on_hub` a hub id."""
    if len(adapter.info.get("token_widths") or []) < 2:
        return [
            f'pipe.load_textual_inversion("{where}", weight_name="{file_name(token)}", token="{token}")'
            for token in adapter.tokens
        ]
    # without this line SDXL's text is pooled at the token, before the class word: models._pool_at_end
    lines = ["pipe.text_encoder_2.text_model.eos_token_id = pipe.tokenizer_2.eos_token_id"]
    for token in adapter.tokens:
        file = f'hf_hub_download("{where}", "{file_name(token)}")' if on_hub else f'"{where}/{file_name(token)}"'
        lines.append(f"vectors = safetensors.torch.load_file({file})")
        for part, suffix in zip(TOKEN_PARTS, ("", "_2"), strict=True):
            place = f"text_encoder=pipe.text_encoder{suffix}, tokenizer=pipe.tokenizer{suffix}"
            lines.append(f'pipe.load_textual_inversion(vectors["{part}"], token="{token}", {place})')
    return lines


def _written(found: LowRank, files: list[str], usage: str) -> Written:
    return Written(files, usage, found.rank, found.errors)


def _version(base: Base) -> str:
    """kohya's name of the base's family: 2.x is told by the width of its text encoder."""
    if base.unet.config.cross_attention_dim != 1024:
        return "sd_v1"
    return "sd_v2_v" if base.prediction_type == "v_prediction" else "sd_v2"


def _save(tensors: dict[str, Tensor], cfg: Config, file: Path, facts: dict[str, str]) -> None:
    dtype = DTYPES[cfg.export.precision]
    save_file({name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}, file, metadata=facts)
