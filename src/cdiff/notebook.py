"""The short Python API: a finished run in a stock pipeline, or opened to draw and to score (docs/python.md).

pipe = cdiff.load(pipe, "latest")       # any StableDiffusion(XL)Pipeline of the run's base
rex = cdiff.open_run("latest")          # base and adapter, ready
images = rex.sample("a <new1> dog on the beach", seed=0)
rex.score(images)                       # one row an image
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from cdiff.adapter import Adapter, apply_adapter, load_adapter
from cdiff.concepts import resolve_concepts
from cdiff.data.images import read_folder
from cdiff.devices import process_device
from cdiff.drawing import default_prompts, written_out
from cdiff.errors import UserError
from cdiff.evaluation.prompts import metric_text
from cdiff.finding import find_run
from cdiff.metrics import Item, open_metrics, prepare_references, score_items
from cdiff.models import DTYPES, Base, base_of, load_base, resolve_precision
from cdiff.sampling import make_requests, sample
from cdiff.schema import Config

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


@dataclass(frozen=True)
class Subject:
    """A token and its class word."""

    token: str
    class_word: str


def load(pipe: DiffusionPipeline, run: str | Path = "latest") -> DiffusionPipeline:
    """Put a finished run into a stock pipeline, in place: weights into its own, tokens into its vocabulary.

    run: "latest", a run's folder, an adapter's folder or file. Returns the same pipeline.

    Raises:
        UserError: no such run, one that is not finished, or one of another base; the pipeline is then as it was.
    """
    apply_adapter(base_of(pipe), adapter_of(run))
    return pipe


def adapter_of(run: str | Path) -> Adapter:
    """The adapter of a run, or the one that a folder or file holds."""
    path = Path(run).expanduser()
    is_adapter = path.is_file() or (path.is_dir() and not (path / "run.json").exists())
    return load_adapter(path if is_adapter else find_run(str(run)).folder / "adapter")


def open_run(
    run: str | Path = "latest", device: str = "auto", precision: str = "auto", path: str | None = None
) -> Opened:
    """Load a finished run's base and put its adapter in.

    path: of the base, where it is not what the run was trained with. Raises UserError as the tasks do.
    """
    found = find_run(str(run))
    cfg = found.config()
    model = cfg.model if path is None else replace(cfg.model, path=path)
    adapter = load_adapter(found.folder / "adapter")
    place = process_device(device)
    base = load_base(model, DTYPES[resolve_precision(precision, place)], place)
    apply_adapter(base, adapter)
    return Opened(found.folder, cfg, base, adapter)


@dataclass(repr=False)
class Opened:
    """A run ready to draw: `base` holds its weights and tokens."""

    folder: Path
    config: Config  # that the run was trained with
    base: Base
    adapter: Adapter

    @property
    def subjects(self) -> list[Subject]:
        """Tokens with their class words."""
        words = {concept["token"]: concept.get("class_word", "") for concept in self.adapter.info.get("concepts", [])}
        return [Subject(token, words.get(token, "")) for token in self.adapter.tokens]

    def sample(
        self, prompts: str | Sequence[str] = (), images_per_prompt: int = 1, seed: int = 42, **sampler: Any
    ) -> list[Image.Image]:
        """Draw images: those that task=sample draws for the same words, seed and sampler.

        prompts: tokens may be written new1; none: prompts made of the class word. sampler: settings of
        SamplerConfig, such as steps=25 or guidance_scale=4. Each image carries its prompt, `image.info["prompt"]`.
        """
        asked = [prompts] if isinstance(prompts, str) else list(prompts)
        try:
            settings = replace(self.config.sampler, **sampler)
        except TypeError as error:
            raise UserError(f"{str(error).split(') ')[-1]}: see SamplerConfig for the names there are.") from error
        words = written_out(asked or default_prompts(self.subjects), self.subjects)
        requests = make_requests(words, images_per_prompt, seed)
        images = sample(self.base, requests, settings, resolution=self.config.model.resolution)
        for image, request in zip(images, requests, strict=True):
            image.info["prompt"] = request.prompt
        return images

    def score(
        self, images: Sequence[Image.Image], prompts: Sequence[str] | None = None, metrics: Sequence[str] = ()
    ) -> list[dict[str, float]]:
        """The metrics of each image (docs/metrics.md), one mapping metric -> number an image.

        prompts: one an image; null: those that `sample` noted. metrics: names; none: all that the world has. Image
        metrics compare with the pictures the run was trained on.
        """
        texts = list(prompts) if prompts is not None else [image.info.get("prompt", "") for image in images]
        if len(texts) != len(images):
            raise UserError(f"score got {len(images)} images and {len(texts)} prompts: give one prompt an image.")
        conf = replace(self.config.metrics, names=list(metrics) or self.config.metrics.names)
        scorers = open_metrics(conf, self.config.model.world, self.base.device)
        needed = any(scorer.needs_references for scorer in scorers)
        reference = prepare_references(scorers, self._pictures) if needed else None
        classes = {subject.token: subject.class_word for subject in self.subjects}
        rule = self.config.evaluate.prompt_rule
        items = [
            Item(image, metric_text(text, rule, classes), reference) for image, text in zip(images, texts, strict=True)
        ]
        return [scored.values for scored in score_items(scorers, items, conf.batch_size)]

    @cached_property
    def _pictures(self) -> list:
        return [picture for concept in resolve_concepts(self.config) for picture in read_folder(concept.folder)]
