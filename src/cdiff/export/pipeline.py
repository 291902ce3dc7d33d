"""A whole diffusers pipeline with the run's weights merged in: stock `from_pretrained` opens it and needs no cdiff."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cdiff.adapter import Adapter
from cdiff.models import no_progress_bar
from cdiff.sampling import make_pipeline
from cdiff.token_adjust import apply_for_sampling

if TYPE_CHECKING:
    from cdiff.models import Base
    from cdiff.schema import SamplerConfig


def write_pipeline(base: Base, adapter: Adapter, sampler: SamplerConfig, folder: Path) -> str:
    """Merge the adapter into `base` and save all parts, with the scheduler of `sampler`, so that the stock pipeline
    draws the images that task=sample draws. Returns the class of the pipeline."""
    apply_for_sampling(base, adapter, sampler.token_adjust)
    pipe = make_pipeline(base, sampler)
    with no_progress_bar():
        pipe.save_pretrained(folder, safe_serialization=True)
    return type(pipe).__name__
