"""Run by the tests in a process of its own, where cdiff can't be imported: the Python lines of a model card.

Only size, noise, guidance, sampler and the number of steps are set between the lines and in the last one.
"""

import json
import sys
from pathlib import Path

sys.modules["cdiff"] = None  # any import of it raises ImportError

import torch  # noqa: E402
from diffusers import DPMSolverMultistepScheduler  # noqa: E402

asked = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
torch.set_num_threads(1)
*load, draw = asked["code"].strip().splitlines()
space = {"generator": torch.Generator().manual_seed(asked["seed"])}
exec("\n".join(load), space)
space["pipe"].scheduler = DPMSolverMultistepScheduler.from_config(space["pipe"].scheduler.config)
options = f"num_inference_steps=3, guidance_scale={asked['guidance']}, height=64, width=64, generator=generator"
assert ").images[0]" in draw
exec(draw.replace(").images[0]", f", {options}).images[0]"), space)
space["image"].save(asked["out"])
