"""How fast cdiff is against the released recipe: one command, one GPU, every arm in a process of its own.

    python experiments/speed/speed.py --minutes 9 --out experiments/speed/results           # one GPU
    python experiments/speed/speed.py --tiny --device cpu --minutes 9 --out /tmp/speed       # the same code, tiny, CPU

The model is Stable Diffusion 1.5 by its published configuration with random weights: speed and memory don't depend on
values. The arms that matter most come first, and speed.json and speed.md are written after each, so a run that is cut
off leaves what it has measured. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
TESTS = HERE.parents[1] / "tests"
sys.path[:0] = [str(HERE), str(TESTS)]


def arms(options: argparse.Namespace) -> list[tuple[str, list[str]]]:
    """(name, words of arms.py, or "cli" with settings of the command line), the most important first."""
    one_kind = [] if options.tiny else ["--steps", "20"]
    whole = "train.steps=4" if options.tiny else "train.steps=500"
    listed = [
        ("peak", ["peak"]),
        ("cdiff", ["cdiff"]),
        ("release bf16", ["release", *one_kind]),
        ("whole run, 500 steps", ["cli", whole]),
        ("release fp32", ["release", "--precision", "fp32", *one_kind]),
        ("draw", ["draw"]),
        ("stock pipeline", ["stock"]),
        ("memory low", ["cdiff", "--memory", "low", *one_kind]),
        ("cdiff eager", ["cdiff", "--execution", "eager", *one_kind]),
        ("profile", ["profile"]),
        ("profile of drawing", ["profile-drawing"]),
        ("equality over 50 steps", ["equal"]),
        ("two GPUs", ["several", "2"]),
        ("cdiff unfused", ["cdiff", "--fused", "off", *one_kind]),
        ("draw unfused", ["draw", "--fused", "off"]),
        ("cdiff contiguous", ["cdiff", "--channels-last", "off", *one_kind]),
        ("cdiff cudnn benchmark", ["cdiff", "--benchmark", *one_kind]),
        ("cdiff batch 8", ["cdiff", "--batch", "8", *one_kind]),
        ("cdiff compile", ["cdiff", "--execution", "compile", "--fused", "off", *one_kind]),
        ("draw eager", ["draw", "--execution", "eager"]),
        ("draw compile", ["draw", "--execution", "compile", "--fused", "off"]),
        ("whole run again", ["cli", whole]),
        ("whole run, fp32 views of 256", ["cli", whole, "augment.views=256"]),
        ("cdiff fp32", ["cdiff", "--precision", "fp32", *one_kind]),
    ]
    return [arm for arm in listed if not options.arms or arm[0] in options.arms]


def build_model(folder: Path, tiny: bool, device: str) -> None:
    """The folder of the base, fp32 safetensors as published; made on the device, since random numbers take time."""
    import torch
    from layouts import CLASSES, TRUE, make, model_index, write_json
    from tiny import build_sd15, write_tokenizer

    if tiny:
        build_sd15(folder)
        return
    parts = TRUE["sd15"]
    torch.manual_seed(0)
    where = "cuda" if device == "auto" and torch.cuda.is_available() else "cpu" if device == "auto" else device
    for part in CLASSES:
        if part in parts:
            with torch.device(where):
                model = make(part, parts[part])
            model.save_pretrained(folder / part)
            del model
    write_tokenizer(folder / "tokenizer")
    write_json(folder / "scheduler" / "scheduler_config.json", parts["scheduler"])
    write_json(folder / "model_index.json", model_index(parts))


class Bench:
    """Runs arms one after the other and keeps what they found."""

    def __init__(self, options: argparse.Namespace, work: Path) -> None:
        self.options, self.work = options, work
        self.model = work / "sd15"
        self.started = time.monotonic()
        self.rows: dict[str, dict[str, Any]] = {}
        self.facts = facts(options)

    def left(self) -> float:
        return 60 * self.options.minutes - (time.monotonic() - self.started)

    def run(self, name: str, words: list[str]) -> None:
        """One arm; what fails or takes too long is told in its row."""
        if self.left() < 20:
            self.rows[name] = {"left_out": "no time was left"}
            return
        start = time.monotonic()
        try:
            kind = {"cli": self.command_line, "several": self.several}.get(words[0], self.arm)
            row = kind(words)
        except subprocess.TimeoutExpired:
            row = {"left_out": "the time was up"}
        except Exception as error:
            row = {"error": f"{type(error).__name__}: {error}"[-600:]}
        self.rows[name] = row | {"arm_seconds": round(time.monotonic() - start, 1)}
        print(f"{name}: {json.dumps({k: v for k, v in row.items() if k not in ('losses', 'kernels')})}", flush=True)
        self.write()

    def arm(self, words: list[str]) -> dict[str, Any]:
        out = self.work / "arm.json"
        out.unlink(missing_ok=True)
        options = self.options
        command = [sys.executable, str(HERE / "arms.py"), *words, "--model", str(self.model), "--out", str(out)]
        for key in ("device", "resolution", "images", "sampler_steps", "views"):
            command += [f"--{key.replace('_', '-')}", str(getattr(options, key))]
        for key in ("batch", "repeats", "steps"):
            if f"--{key}" not in words:
                command += [f"--{key}", str(getattr(options, key))]
        command += ["--tiny"] if options.tiny else []
        self._call(command, os.environ | {"SPEED_STARTED": str(time.time())})
        return json.loads(out.read_text())

    def command_line(self, words: list[str]) -> dict[str, Any]:
        """The whole of it as a user types it, from the start of the process to its end."""
        folder = self.work / f"run-{time.monotonic():.0f}"
        start = time.time()
        self._call([sys.executable, "-m", "cdiff", *self.training(folder), *words[1:]], os.environ)
        seconds = time.time() - start
        run = json.loads((folder / "run.json").read_text())
        adapter = next((folder / "adapter").glob("*.safetensors"))
        return {
            "seconds": round(seconds, 2),
            "seconds_to_adapter": round(adapter.stat().st_mtime - start, 2),
            "timings": run["timings"],
            "losses": run["result"]["losses"],
        }

    def several(self, words: list[str]) -> dict[str, Any]:
        """One process and several, the same batch for each GPU: images a second of the later half of the steps."""
        number = int(words[1])
        if not self.options.tiny and self.facts["gpus"] < number:
            return {"left_out": f"{self.facts['gpus']} GPU here"}
        found = {}
        for processes in (1, number):
            folder = self.work / f"several-{processes}-{time.monotonic():.0f}"
            launch = ["-m", "accelerate.commands.launch", "--num_processes", str(processes), "--num_machines", "1"]
            launch += ["--mixed_precision", "no", "--dynamo_backend", "no"]
            launch += ["--multi_gpu"] if processes > 1 else []
            if not self.facts["gpus"]:  # accelerate's launcher wants MPI on a CPU
                launch = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
            steps = 8 if self.options.tiny else 200
            words_of_run = [*self.training(folder), f"train.steps={steps}", "augment.views=64"]
            env = os.environ | ({"OMP_NUM_THREADS": "1"} if self.options.tiny else {})
            self._call([sys.executable, *launch, "-m", "cdiff", *words_of_run], env)
            events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
            speeds = [event["images_per_second"] for event in events if "images_per_second" in event]
            late = sorted(speeds[len(speeds) // 2 :])
            found[f"images_per_second_{processes}"] = round(late[len(late) // 2], 2)
        found["times"] = round(found[f"images_per_second_{number}"] / found["images_per_second_1"], 2)
        return found

    def training(self, folder: Path) -> list[str]:
        options = self.options
        return [
            "task=train", "model=sd15", f"model.path={self.model}", f"model.resolution={options.resolution}",
            "concept=folder", f"concept.images={self.work / 'pictures'}", "concept.class_word=dog",
            f"device={options.device}", "logger=none", "train.then=[]", f"train.batch_size={options.batch}",
            f"output={folder}",
        ]  # fmt: skip

    def _call(self, command: list[str], env: dict[str, str]) -> None:
        env = dict(env) | {"HF_HUB_OFFLINE": "1"}
        limit = max(10.0, self.left())
        with (self.work / "said.txt").open("w+") as said:
            done = subprocess.run(command, env=env, timeout=limit, stdout=said, stderr=subprocess.STDOUT, check=False)
            if done.returncode:
                said.seek(0)
                raise RuntimeError(f"exit code {done.returncode}: {said.read()[-500:].strip()}")

    def write(self) -> None:
        out = self.options.out
        out.mkdir(parents=True, exist_ok=True)
        rows = derived(self.rows, self.facts)
        (out / "speed.json").write_text(json.dumps({**self.facts, "arms": rows}, indent=1) + "\n")
        (out / "speed.md").write_text(table(rows, self.facts))


def facts(options: argparse.Namespace) -> dict[str, Any]:
    """Device, versions, date, and the arithmetic of a step."""
    import accelerate
    import diffusers
    import torch
    import transformers
    from flops import step_flop, vae_flop
    from layouts import TRUE
    from tiny import _unet, _vae

    gpus = torch.cuda.device_count() if torch.cuda.is_available() and options.device != "cpu" else 0
    unet, vae = (_unet().config, _vae().config) if options.tiny else (TRUE["sd15"]["unet"], TRUE["sd15"]["vae"])
    step = step_flop(unet, options.batch, options.resolution // 8)
    return {
        "device": torch.cuda.get_device_name() if gpus else f"{platform.machine()} CPU",
        "gpus": gpus,
        "date": date.today().isoformat(),
        "tiny": options.tiny,
        "resolution": options.resolution,
        "batch": options.batch,
        "tflop_forward": round(step["forward"] / 1e12, 6),
        "tflop_step": round(step["step"] / 1e12, 6),
        "tflop_encode": round(vae_flop(vae, options.resolution)["encode"] / 1e12, 6),
        "command": " ".join(sys.argv),
        "versions": {
            "python": platform.python_version(),
            **{m.__name__: m.__version__ for m in (torch, diffusers, transformers, accelerate)},
        },
    }


def derived(rows: dict[str, dict], facts: dict[str, Any]) -> dict[str, dict]:
    """Rows with what follows from several of them: the share of the peak, and how many times as fast as the release."""
    peak = rows.get("peak", {}).get("peak_tflops")
    found = {}
    for name, row in rows.items():
        row = dict(row)
        if "ms_per_step" in row:
            if peak and "batch 8" not in name:
                row["share_of_peak"] = round(facts["tflop_step"] / (row["ms_per_step"] / 1000) / peak, 4)
            if peak and "batch 8" in name:
                row["share_of_peak"] = round(4 * facts["tflop_step"] / (row["ms_per_step"] / 1000) / peak, 4)
            for other in ("release fp32", "release bf16"):
                if "ms_per_step" in rows.get(other, {}) and name.startswith("cdiff") and "batch 8" not in name:
                    row[f"times {other}"] = round(rows[other]["ms_per_step"] / row["ms_per_step"], 2)
        if name.startswith("draw") and "seconds" in row and "seconds" in rows.get("stock pipeline", {}):
            row["times stock pipeline"] = round(rows["stock pipeline"]["seconds"] / row["seconds"], 2)
        found[name] = row
    return found


COLUMNS = {
    "ms_per_step": "ms a step",
    "images_per_second": "images/s",
    "share_of_peak": "share of peak",
    "peak_gib": "peak GiB",
    "estimated_gib": "estimated",
    "seconds_to_first_step": "first step, s",
    "seconds": "seconds",
    "times release fp32": "x release fp32",
    "times release bf16": "x release bf16",
    "times stock pipeline": "x stock",
}


def table(rows: dict[str, dict], facts: dict[str, Any]) -> str:
    """Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    peak = rows.get("peak", {}).get("peak_tflops", "?")
    model = "a model of tiny width" if facts["tiny"] else "Stable Diffusion 1.5, random weights"
    lines = [
        f"{facts['device']}, {facts['date']}, {versions}. {model}, {facts['resolution']} px, batch {facts['batch']}.",
        f"A step is {facts['tflop_step']:.4g} TFLOP (forward and input gradients), bf16 peak measured {peak} TFLOP/s.",
        f"`python {facts['command']}`",
        "",
        "| arm | " + " | ".join(COLUMNS.values()) + " | |",
        "|" + " --- |" * (len(COLUMNS) + 2),
    ]
    for name, row in rows.items():
        cells = [str(row.get(key, "")) for key in COLUMNS]
        note = row.get("error") or row.get("left_out") or ""
        if "timings" in row:
            note = ", ".join(f"{key} {value:.1f} s" for key, value in row["timings"].items())
        if "times" in row:
            note = f"{row['times']} x the images/s of one"
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {' '.join(note.split())[:200]} |")
    return "\n".join(lines) + "\n"


def pictures(folder: Path, side: int) -> None:
    import numpy as np
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for number in range(5):
        pixels = np.random.default_rng(number).integers(0, 255, (side // 8, side // 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, help="folder for the model and runs; kept, and found again")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--tiny", action="store_true", help="the same code on a model of tiny width")
    parser.add_argument("--arms", nargs="+", help="names of the arms to run; all without it")
    parser.add_argument("--resolution", type=int, default=512)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--views", type=int, default=64)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--sampler-steps", type=int, default=25)
    options = parser.parse_args()
    if options.tiny:
        options.resolution, options.repeats, options.steps, options.views = 64, 2, 2, 4
        options.images, options.sampler_steps = 8, 2
    if options.arms and (
        unknown := set(options.arms) - {name for name, _ in arms(argparse.Namespace(arms=None, tiny=0))}
    ):
        parser.error(f"no such arm: {', '.join(unknown)}")
    work = options.work or Path(tempfile.mkdtemp(prefix="cdiff-speed-"))
    bench = Bench(options, work)
    try:
        if not (bench.model / "model_index.json").is_file():
            build_model(bench.model, options.tiny, options.device)
        pictures(work / "pictures", options.resolution)
        bench.facts["seconds_to_build"] = round(time.monotonic() - bench.started, 1)
        bench.write()
        for name, words in arms(options):
            bench.run(name, words)
        bench.write()
    finally:
        if options.work is None:
            shutil.rmtree(work, ignore_errors=True)
    print((options.out / "speed.md").read_text())
    return int(any("error" in row for row in bench.rows.values()))


if __name__ == "__main__":
    sys.exit(main())
