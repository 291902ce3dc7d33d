"""The whole configuration as dataclasses. Values live in conf/*.yaml, ranges and checks across fields in `checks`.

No torch in this module: every command imports it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

TASKS = ("train", "sample", "pretrain")


@dataclass
class ModelConfig:
    """A base model: a folder or hub id that holds a Stable Diffusion pipeline."""

    name: str = "pocket"
    path: str = "pocket"  # "pocket" is the base shipped in the package; else a folder or a hub id
    revision: str | None = None
    variant: str | None = None
    world: str = "pocket"  # which of a concept's sources this model sees: pocket | photo
    resolution: int = 128


@dataclass
class ConceptConfig:
    """What one concept is. conf/concept/NAME.yaml fills `concepts.NAME`; `concept.KEY=` overrides every chosen one."""

    class_word: str | None = None
    token: str | None = None  # <new1>, <new2> ... by order when null; may be written new1
    initializer: str | None = None  # a word, or "class_word"
    images: str | None = None  # a folder of the user's own; wins over `sources`
    sources: dict[str, str] = field(default_factory=dict)  # world -> pocket:NAME | hub dataset id:subset | folder


@dataclass
class MethodConfig:
    name: str = "class_diffusion"
    train_unet: str = "crossattn_kv"  # crossattn_kv | crossattn | none
    train_token: bool = True
    detach_start_token: bool = True  # Custom Diffusion: no gradient through K and V of text token 0


@dataclass
class LossConfig:
    prior_weight: float = 1.0
    spl_weight: float = 1.0
    spl_feature: str = "eos"  # eos (the paper) | release (feature at the largest token id)


@dataclass
class AugmentConfig:
    """Custom Diffusion's augmentation (method.md section 1)."""

    enabled: bool = True
    hflip: bool = True
    shrink_probability: float = 0.66
    shrink_min: float = 1 / 3
    zoom_min: float = 1.2
    zoom_max: float = 1.4
    views: int | None = None  # different augmented views encoded ahead; null: one for each training sample


@dataclass
class TrainConfig:
    steps: int = 500
    batch_size: int = 2
    gradient_accumulation_steps: int = 1
    max_grad_norm: float = 1.0
    prompt_templates: str = "object"  # templates of captions: object | plain | a list in a file
    log_every: int = 10
    then: list[str] = field(default_factory=lambda: ["sample"])


@dataclass
class ValidationConfig:
    every: int = 0  # steps between validation images; 0: none
    prompts: list[str] = field(default_factory=list)  # empty: two prompts from the concept's class
    images_per_prompt: int = 1
    steps: int = 12  # sampler steps


@dataclass
class OptimizerConfig:
    name: str = "adamw"
    learning_rate: float = 1e-5
    scale_learning_rate: bool = True  # times batch x accumulation x processes, as released
    token_learning_rate: float | None = None  # null: the same as learning_rate
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 1e-2
    epsilon: float = 1e-8


@dataclass
class LRScheduleConfig:
    name: str = "constant"  # constant | constant_with_warmup | linear | cosine
    warmup_steps: int = 0


@dataclass
class PriorConfig:
    name: str = "none"  # none | folder | generated
    images: str | None = None
    count: int = 200
    prompt: str | None = None


@dataclass
class SamplerConfig:
    name: str = "dpmpp"  # ddim | dpmpp
    steps: int = 25
    guidance_scale: float = 6.0
    eta: float = 0.0
    batch_size: int = 8
    negative_prompt: str = ""


@dataclass
class LoggerConfig:
    name: str = "wandb"  # wandb | tensorboard | none
    mode: str = "auto"  # wandb: auto (online when logged in, else offline) | online | offline
    project: str = "cdiff"
    entity: str | None = None
    group: str | None = None
    tags: list[str] = field(default_factory=list)


@dataclass
class CheckpointConfig:
    every: int = 0
    keep: int = 2


@dataclass
class PretrainConfig:
    """Making the pocket models again. `settings` holds one mapping a stage (see conf/pretrain)."""

    stage: str | None = None
    pictures: int = 1_000_000
    workers: int = 16
    folder: str = "outputs/pretrain"
    minutes: float | None = None  # stop a stage after this long; null: after its steps
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass
class Config:
    task: str = "train"
    model: ModelConfig = field(default_factory=ModelConfig)
    concept: ConceptConfig = field(default_factory=ConceptConfig)
    concepts: dict[str, ConceptConfig] = field(default_factory=dict)
    method: MethodConfig = field(default_factory=MethodConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    prior: PriorConfig = field(default_factory=PriorConfig)
    precision: str = "auto"  # auto | fp32 | fp16 | bf16
    device: str = "auto"  # auto | cpu | cuda
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    lr_schedule: LRScheduleConfig = field(default_factory=LRScheduleConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    run: Any = "latest"  # latest | a run's folder | a list of folders | base (the untouched base model)
    prompt: str | None = None
    prompts: list[str] = field(default_factory=list)
    prompt_file: str | None = None
    images_per_prompt: int = 2
    seed: int = 42
    output: str | None = None  # the run's folder; null: outputs/TASK/CONCEPTS/METHOD/TIME (filled by the cli)
    dry_run: bool = False
    name: str | None = None  # of a study: outputs/sweeps/NAME
