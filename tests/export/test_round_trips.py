"""Exports opened by stock diffusers, in a process that cannot import cdiff, draw what cdiff draws."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest_export import PROMPT, export, in_stock_process
from PIL import Image
from tiny_job import GUIDANCE, GUIDED, words

from cdiff.cli import main

SETTINGS = {"steps": 3, "guidance": GUIDANCE, "options": {"height": 64, "width": 64}}


@pytest.fixture(scope="module")
def drawn(run_folder, sd15_folder, tmp_path_factory) -> dict:
    """cdiff's images of two prompts, and those of every export."""
    out = tmp_path_factory.mktemp("stock")
    job = [*words(sd15_folder), "task=sample", f"run={run_folder}", f"output={out / 'own'}", "sampler.batch_size=1"]
    assert main([*job, GUIDED, f"prompts=['{PROMPT}','a photo of a dog']", "images_per_prompt=2"]) == 0
    table = json.loads((out / "own" / "samples" / "prompts.json").read_text())
    own = np.stack([np.asarray(Image.open(out / "own" / "samples" / name)) for name in table])
    folders = {name: export(run_folder, name) for name in ("diffusers", "lora", "kohya", "release")}
    images = [(row["prompt"], row["seed"]) for row in table.values()]
    whole = {"pipeline": str(folders["diffusers"]), "images": images, **SETTINGS}
    bare = whole | {"pipeline": str(sd15_folder), "scheduler": str(folders["diffusers"])}

    def usage(name: str) -> list[str]:
        """The lines that export.json tells, without the one that draws."""
        lines = json.loads((folders[name] / "export.json").read_text())["usage"]
        return [
            line.replace("DIR", str(folders[name])) for line in lines if line.startswith(("pipe.load", "pipe.unet"))
        ]

    kohya = folders["kohya"]
    loads_kohya = [
        f'pipe.load_lora_weights("{kohya}", weight_name="folder.safetensors")',
        f'pipe.load_textual_inversion("{kohya}/embeddings", weight_name="new1.safetensors", token="<new1>")',
    ]
    with_peft = {
        "diffusers": whole,
        "lora": bare | {"lines": usage("lora")},
        "half": bare | {"lines": usage("lora"), "strength": 0.5},
        "kohya": bare | {"lines": loads_kohya},
        "bare": bare | {"images": [image for image in images if "<" not in image[0]]},
    }
    without = {"diffusers": whole, "release": bare | {"lines": usage("release")}}
    return {"own": own, "peft": in_stock_process(with_peft, out), "none": in_stock_process(without, out, peft=False)}


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def test_the_whole_pipeline_draws_the_very_images_of_cdiff(drawn):
    assert np.array_equal(drawn["peft"]["diffusers.levels"], drawn["own"])


def test_with_and_without_peft_the_bits_are_the_same(drawn):
    assert np.array_equal(drawn["peft"]["diffusers"], drawn["none"]["diffusers"])


def test_the_release_files_draw_the_very_images_too(drawn):
    """Opened by diffusers' own Custom Diffusion loader, which runs the text through its own attention processors."""
    assert relative(drawn["none"]["release"], drawn["none"]["diffusers"]) < 1e-5


@pytest.mark.parametrize("name", ["lora", "kohya"])
def test_an_exact_lora_differs_by_less_than_1e_4(drawn, name):
    assert relative(drawn["peft"][name], drawn["peft"]["diffusers"]) < 1e-4


def test_the_comparisons_can_fail(drawn):
    whole = drawn["peft"]["diffusers"]
    assert relative(drawn["peft"]["half"], whole) > 1e-3
    assert relative(drawn["peft"]["bare"], whole[2:]) > 1e-3
    assert relative(whole[:2], whole[2:]) > 1e-3


def test_what_an_export_tells(run_folder, drawn):
    told = json.loads((export(run_folder, "lora") / "export.json").read_text())
    assert told["format"] == "lora" and told["concepts"][0]["token"] == "<new1>"
    assert len(told["errors"]) == 32  # keys and values of the 16 layers of Stable Diffusion 1.5
    assert max(told["errors"].values()) < 1e-5
    for name in told["files"]:
        assert Path(export(run_folder, "lora"), name).is_file()
