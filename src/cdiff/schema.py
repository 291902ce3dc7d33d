"""The whole configuration as dataclasses. Values live in conf/*.yaml, ranges and checks across fields in `checks`.

No torch in this module: every command imports it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

METRICS = {  # metric -> the scorer that gives it; a scorer's name stands for all of its metrics
    "clip_t": "clip",
    "clip_i": "clip",
    "dino_i": "dino",
    "recognized": "dino",  # in the pocket world alone
    "blip2_t": "blip",
    "attr_class": "attributes",
    "attr_scene": "attributes",
    "attr_accessory": "attributes",
    "attr_color": "attributes",
}
METHODS = {  # method -> what its method.train_unet may be
    "class_diffusion": ("crossattn_kv", "crossattn", "none"),
    "custom_diffusion": ("crossattn_kv", "crossattn", "none"),
    "textual_inversion": ("none",),
    "dreambooth": ("all",),
    "lora": ("lora",),
}
VIDEO_METRICS = ("frame_consistency", "motion")  # of a clip as a whole, beside the means over its frames
ANCHORS = ("first", "middle", "three")  # video.anchor; three: the first, the middle and the last frame
TASKS = ("train", "sample", "video", "evaluate", "merge", "report", "export", "concept", "doctor", "pretrain")


@dataclass
class ModelConfig:
    """A base model: a folder, hub id or single-file checkpoint of a Stable Diffusion (1.x, 2.x, XL)."""

    name: str = "pocket"
    path: str = "pocket"  # "pocket" is the base shipped in the package; else a folder or a hub id
    revision: str | None = None
    variant: str | None = None  # of the weight files: fp16 for diffusion_pytorch_model.fp16.safetensors
    config: str | None = None  # single-file checkpoints: a folder or hub id with the model's configuration files
    world: str = "pocket"  # which of a concept's sources this model sees: pocket | photo
    resolution: int = 128
    channels_last: bool | None = None  # weights of UNet and VAE in that layout; null: on a GPU in half precision
    fused: bool | None = None  # kernels of our own, shared products; null: on a GPU in half precision, channels_last


@dataclass
class ConceptConfig:
    """What one concept is. conf/concept/NAME.yaml fills `concepts.NAME`; `concept.KEY=` overrides every chosen one."""

    class_word: str | None = None
    token: str | None = None  # <new1>, <new2> ... by order when null; may be written new1
    initializer: str | None = None  # class_word | looks | rare | random | any word or words; null: method.initializer
    images: str | None = None  # a folder of the user's own; wins over `sources`
    sources: dict[str, str] = field(default_factory=dict)  # world -> pocket:NAME | hub dataset id:subset | folder
    looks: dict[str, str] = field(default_factory=dict)  # world -> a word for what that source's pictures show: brown


@dataclass
class MethodConfig:
    name: str = "class_diffusion"
    train_unet: str = "crossattn_kv"  # crossattn_kv | crossattn | none | all (dreambooth) | lora
    train_token: bool | None = True  # null: where the SPL or a trained text encoder asks for it; false: a fixed name
    detach_start_token: bool = True  # Custom Diffusion: no gradient through K and V of text token 0
    initializer: str = "class_word"  # where new tokens start, for concepts that don't say
    train_text_encoder: bool = False  # dreambooth: the text encoder too, but for its word table
    save_precision: str = "fp32"  # dreambooth: of the weights on disk, fp32 (exact) | fp16 (half the size)
    rank: int = 16  # lora
    alpha: float | None = None  # lora: its update is scaled by alpha / rank; null: alpha = rank
    targets: list[str] = field(default_factory=lambda: ["to_q", "to_k", "to_v", "to_out.0"])  # lora: attention layers

    def trains_token(self, spl_weight: float) -> bool:
        """Whether the new tokens' embeddings train; what `train_token` says, or for null what the losses need."""
        return self.train_text_encoder or spl_weight > 0 if self.train_token is None else self.train_token


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
    background: float = 0.0  # weight of the loss outside a picture's mask, where it has one
    views: int | None = 256  # different augmented views encoded ahead; null: one for each training sample


@dataclass
class TrainConfig:
    steps: int = 500
    batch_size: int = 2
    gradient_accumulation_steps: int = 1
    max_grad_norm: float = 1.0
    captions: bool = True  # captions beside the pictures stand in the templates' place
    prompt_templates: str = "object"  # templates of captions: object | plain | a list in a file
    log_every: int = 10
    execution: str = "auto"  # of a step: auto | eager | graph (CUDA graphs) | compile (and graphs); cdiff.stepping
    skip_not_finite: int = 0  # steps whose loss or gradient is not finite that are left out; one more stops the run
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
    images: str | None = None  # folder: the user's own class images, captions beside them as .txt
    count: int = 200  # class images in all, equal shares a class
    prompt: str | None = None  # {class_word} in it stands for the class; null: "a photo of a {class_word}"
    captions: str | None = None  # generated: a file of such prompts, one a line, instead of the one
    seed: int = 0  # of the generated images; not the run's, so that runs of other seeds find them drawn


@dataclass
class TokenAdjustConfig:
    """Test-time embedding adjustment (cdiff.token_adjust)."""

    alpha: float = 0.0  # share of the way from the token's direction to its class word's; 0: off
    beta: float | None = None  # norm, as a multiple of the class word's; null: the token's own


@dataclass
class SamplerConfig:
    name: str = "dpmpp"  # ddim | dpmpp | euler | euler_a
    steps: int = 25
    guidance_scale: float = 6.0
    eta: float = 0.0
    batch_size: int = 8
    execution: str = "auto"  # of the UNet: auto | eager | graph | compile; cdiff.sampling
    negative_prompt: str = ""
    token_adjust: TokenAdjustConfig = field(default_factory=TokenAdjustConfig)


@dataclass
class VideoScheduleConfig:
    """The noise schedule that a motion adapter was trained under. null: the base model's own."""

    beta_schedule: str | None = None  # linear | scaled_linear | squaredcos_cap_v2
    steps_offset: int | None = None
    timestep_spacing: str | None = None  # leading | linspace | trailing


@dataclass
class VideoConfig:
    """Clips of a tuned concept, by AnimateDiff (cdiff.video). Sampler, steps and guidance stand under `sampler`."""

    name: str = "animatediff"
    motion_adapter: str = "pocket"  # a folder, a hub id, or "pocket" for the one made for the pocket base
    revision: str | None = None
    variant: str | None = None  # of the adapter's weight file: fp16
    frames: int = 16
    margin: int = 0  # frames drawn before and after these and left away: the ends of a clip come out worst
    fps: int = 8
    schedule: VideoScheduleConfig = field(default_factory=VideoScheduleConfig)
    mp4: bool = True  # beside the GIF; needs imageio-ffmpeg
    keep_frames: bool = False  # every frame as a PNG too
    decode_frames: int | None = None  # that the VAE decodes at once; null: as many as four pictures of 512 px are
    vae_slicing: bool = False  # the VAE decodes frame after frame
    free_noise: int | None = None  # FreeNoise: frames that look at one another, in windows; null: all of them
    free_noise_stride: int = 4  # frames from one window to the next
    anchor: str | None = None  # frames that all others look at in the decoder: first | middle | three; null: none
    shared_noise: float = 0.0  # share of the noise's variance that all frames have in common
    cpu_offload: bool = False  # each part of the model is on the GPU while it works only
    then: list[str] = field(default_factory=list)  # [evaluate]: score the frames

    @property
    def drawn_frames(self) -> int:
        return self.frames + 2 * self.margin


@dataclass
class MergeConfig:
    """Several finished runs in one adapter (cdiff.merging)."""

    rename: bool = False  # give later runs other tokens where two share one
    captions: str | None = None  # a file of general captions, one a line, to be kept as the base draws them
    prompts: list[str] = field(default_factory=list)  # of the concepts, {} for "<new1> dog"; empty: a built-in list


@dataclass
class ExportConfig:
    """How a finished run is written for other tools (cdiff.export)."""

    folder: str | None = None  # where to; null: RUN/export/FORMAT
    rank: int | None = None  # lora, kohya: of every layer; null: by `tolerance`, and without one exact
    tolerance: float | None = None  # lora, kohya: the relative error that no layer may exceed
    precision: str = "fp32"  # of the weights written: fp32 | fp16
    images: int = 4  # hub: at most so many of the run's pictures on the model card


@dataclass
class MetricsConfig:
    """What images are scored with. A model is a folder, a hub id, or "pocket" for the one shipped in the package."""

    names: list[str] = field(default_factory=list)  # metrics or their scorers; empty: all that the world has
    clip: str | None = None  # null: the one that `sources` has for the model's world; likewise below
    dino: str | None = None
    blip: str | None = None  # a BLIP or a BLIP-2 with a retrieval head
    probe: str | None = None  # judges the attributes of the pocket world
    sources: dict[str, dict[str, str]] = field(default_factory=dict)  # world -> clip | dino | blip | probe -> model
    dino_preprocessing: str = "auto"  # dino (as published) | folder (the model's own) | auto (folder in pocket)
    batch_size: int = 32
    workers: int = 0  # threads that read and preprocess images; 0: one for each core, at most 16


@dataclass
class ProtocolConfig:
    """What is drawn for an evaluation; "{}" in a prompt stands for token and class ("<new1> dog")."""

    name: str = "quick"
    images_per_prompt: int = 2
    prompts: list[str] = field(default_factory=list)  # for every class
    live: list[str] = field(default_factory=list)  # further ones for live classes
    object: list[str] = field(default_factory=list)  # further ones for all other classes
    joint: list[str] = field(default_factory=list)  # of several concepts at once: {0}, {1}
    live_classes: list[str] = field(default_factory=list)  # empty: a built-in list of animals and people
    subjects: dict[str, str] = field(
        default_factory=dict
    )  # the benchmark's concepts and their classes, if it has a list
    benchmark: str | None = None  # CustomConcept101's folder: prompts come from its files instead


@dataclass
class EvaluateConfig:
    """How an evaluation scores and averages (docs/metrics.md)."""

    prompt_rule: str = "drop"  # drop | keep | class: what text metrics see of "a <new1> dog"
    tokens: list[str] = field(default_factory=list)  # further words to drop from prompts, such as sks
    objective: str = "clip_t"  # the metric a sweeper gets; also of train.then=[evaluate]
    max_bad_share: float = 0.2  # of images that can't be read; above it the evaluation fails
    resamples: int = 2000  # of the bootstrap
    name: str | None = None  # of the result's folder, RUN/evaluation/NAME; null: the protocol's


@dataclass
class LoggerConfig:
    name: str = "wandb"  # wandb | tensorboard | none
    mode: str = "auto"  # wandb: auto (online when logged in, else offline) | online | offline
    project: str = "cdiff"
    entity: str | None = None
    group: str | None = None
    tags: list[str] = field(default_factory=list)


@dataclass
class ProbesConfig:
    """What is measured of the new token while it trains (cdiff.drift, cdiff.attention_maps)."""

    every: int = 50  # steps between drift probes; 0: none
    attention: bool = False  # maps of the class word's cross-attention before and after, as images


@dataclass
class SweepConfig:
    """The sweep that a run is a job of. `resume` is yours to set; the command line fills in the rest."""

    resume: bool = True  # the same sweep again: done jobs are passed over, the others are done again; false: refused
    name: str | None = None  # of the sweep's folder
    job: int | None = None  # its number, from 0
    swept: dict[str, str] = field(default_factory=dict)  # what tells this job from others: key -> value
    gpu: str | None = None  # the GPU that this process took for itself


@dataclass
class CheckpointConfig:
    every: int | None = None  # steps; null: as often as costs 2 % of the training time at most; 0: at a signal alone
    keep: int = 2


@dataclass
class ResumeConfig:
    """Going on with a run that was stopped (cdiff.resuming)."""

    run: str | None = None  # resume=latest | resume=RUN | resume=RUN/checkpoints/step-N
    allow: list[str] = field(default_factory=list)  # settings that may differ from the run's own


@dataclass
class ReportConfig:
    """The page of task=report (cdiff.report)."""

    title: str | None = None  # null: the name of the folder
    megabytes: float = 16.0  # of pictures in the page, at most; above it they are fewer and smaller
    text_metric: str | None = None  # the alignment plot's axes; null: the first that was measured of clip_t, blip2_t
    image_metric: str | None = None  # ... of recognized, dino_i, clip_i


@dataclass
class PretrainConfig:
    """Making the pocket models again. `settings` holds one mapping a stage (see conf/pretrain)."""

    stage: str | None = None
    pictures: int = 1_000_000
    workers: int = 16
    folder: str = "outputs/pretrain"
    minutes: float | None = None  # of training, counted once the first steps have compiled; null: the stage's steps
    deadline: float | None = None  # training ends by then: unix time, or minutes from the start, compilation included
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
    memory: str = "normal"  # normal | low (slower, in less of the GPU's memory)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    lr_schedule: LRScheduleConfig = field(default_factory=LRScheduleConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    video: VideoConfig = field(default_factory=VideoConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    protocol: ProtocolConfig = field(default_factory=ProtocolConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)
    resume: ResumeConfig = field(default_factory=ResumeConfig)
    probes: ProbesConfig = field(default_factory=ProbesConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    merge: MergeConfig = field(default_factory=MergeConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    format: str = "diffusers"  # task=export: diffusers | lora | kohya | release | hub
    repo: str | None = None  # format=hub: owner/name on the hub
    push: bool = False  # format=hub: upload the folder; false: write it, and nothing else
    class_word: str | None = None  # task=concept: of the concept that images= shows
    runs: list[str] = field(default_factory=list)  # what task=merge merges: folders of runs, or of adapters
    run: Any = "latest"  # latest | a run's folder | a list of folders | base (the untouched base model)
    images: str | None = None  # task=evaluate: a folder of anybody's images instead of a run
    references: Any = None  # the real pictures to compare them with: a folder, or a list of folders
    prompt: str | None = None
    prompts: list[str] = field(default_factory=list)
    prompt_file: str | None = None
    images_per_prompt: int = 2
    seed: int = 42
    output: str | None = None  # the run's folder; null: outputs/TASK/CONCEPTS/METHOD/TIME (filled by the cli)
    dry_run: bool = False
    name: str | None = None  # of a study: outputs/sweeps/NAME
