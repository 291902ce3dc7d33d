"""Run by the tests in a process of its own, where cdiff can't be imported: stock diffusers opens exports and draws."""

import json
import sys
from pathlib import Path

sys.modules["cdiff"] = None  # any import of it raises ImportError

asked = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
if not asked["peft"]:
    sys.modules["peft"] = None
    import importlib.metadata

    version = importlib.metadata.version

    def without_peft(name):
        if name == "peft":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    importlib.metadata.version = without_peft

import numpy as np  # noqa: E402
import safetensors.torch  # noqa: E402
import torch  # noqa: E402
from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler  # noqa: E402
from diffusers.utils import is_peft_available  # noqa: E402

assert is_peft_available() == asked["peft"]
torch.set_num_threads(1)


def draw(job):
    pipe = DiffusionPipeline.from_pretrained(job["pipeline"])
    if "scheduler" in job:  # of another pipeline, so that both draw alike
        pipe.scheduler = DPMSolverMultistepScheduler.from_pretrained(job["scheduler"], subfolder="scheduler")
    pipe.set_progress_bar_config(disable=True)
    for line in job.get("lines", []):
        exec(line, {"pipe": pipe, "safetensors": safetensors})
    if job.get("strength"):
        pipe.set_adapters(pipe.get_active_adapters(), job["strength"])
    found = []
    for prompt, seed in job["images"]:
        generator = torch.Generator().manual_seed(seed)
        options = {"num_inference_steps": job["steps"], "guidance_scale": job["guidance"], **job.get("options", {})}
        image = pipe(prompt, generator=generator, output_type="np", **options).images[0]
        found.append(image)
    return np.stack(found)


arrays = {}
for name, job in asked["jobs"].items():
    images = draw(job)
    arrays[name] = images
    arrays[f"{name}.levels"] = (images * 255).round().astype("uint8")
np.savez(asked["out"], **arrays)
