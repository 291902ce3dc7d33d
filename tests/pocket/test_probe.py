"""The attribute probe's layout of logits and its losses, against plain computation."""

from __future__ import annotations

import math

import pytest
import torch
from PIL import Image

from cdiff.pocket.pretrain.probe import build_probe, probe_losses
from cdiff.pocket.probe import SIDE, SPLITS, Probe, enlarge, split_logits
from cdiff.pocket.world.spec import ACCESSORIES, COLORS, KINDS, SCENES


def cross_entropy(logits: list[float], target: int) -> float:
    return math.log(sum(math.exp(v) for v in logits)) - logits[target]


def binary(logit: float, target: float) -> float:
    p = 1 / (1 + math.exp(-logit))
    return -(target * math.log(p) + (1 - target) * math.log(1 - p))


def test_the_logits_are_split_in_order():
    logits = torch.arange(2 * sum(SPLITS)).view(2, -1).float()
    scenes, kinds, accessories, colors = split_logits(logits)
    assert [t.shape[1] for t in (scenes, kinds, accessories)] == [len(SCENES), len(KINDS), len(ACCESSORIES)]
    assert colors.shape == (2, len(KINDS), len(COLORS))
    joined = torch.cat([scenes, kinds, accessories, colors.flatten(1)], 1)
    assert torch.equal(joined, logits)
    assert colors[0, 3, 2] == len(SCENES) + len(KINDS) + len(ACCESSORIES) + 3 * len(COLORS) + 2


def test_losses_equal_the_plain_sums():
    torch.manual_seed(0)
    logits = torch.randn(3, sum(SPLITS))
    #        scene, kind, colour, accessory of the main subject, then of the other
    labels = torch.tensor([[2, 0, 3, 5, -1, -1, -1], [0, 6, 1, -1, 7, 10, -1], [12, 5, 0, 0, 2, 4, 7]])
    parts = probe_losses(logits, labels)
    scenes, kinds, accessories, colors = split_logits(logits)
    scene = sum(cross_entropy(scenes[i].tolist(), int(labels[i, 0])) for i in range(3)) / 3
    present = [{0}, {6, 7}, {5, 2}]
    kind = sum(binary(float(kinds[i, k]), float(k in present[i])) for i in range(3) for k in range(len(KINDS)))
    worn = [{5}, set(), {0, 7}]
    accessory = sum(
        binary(float(accessories[i, a]), float(a in worn[i])) for i in range(3) for a in range(len(ACCESSORIES))
    )
    told = [(0, 0, 3), (1, 6, 1), (1, 7, 10), (2, 5, 0), (2, 2, 4)]
    color = sum(cross_entropy(colors[i, k].tolist(), c) for i, k, c in told) / len(told)
    wanted = {"scene": scene, "kind": kind / 3 / 4, "accessory": accessory / 3 / 2, "color": color}
    for name, value in wanted.items():
        assert float(parts[name]) == pytest.approx(value, abs=1e-5), name
    assert float(parts["loss"]) == pytest.approx(sum(wanted.values()), abs=1e-5)


def test_perfect_logits_have_no_loss():
    labels = torch.tensor([[2, 0, 3, 5, -1, -1, -1], [0, 6, 1, -1, 7, 10, -1]])
    logits = torch.full((2, sum(SPLITS)), -40.0)
    parts = split_logits(logits)  # views
    for row, (scene, kind, color, accessory, kind2, color2, _) in enumerate(labels.tolist()):
        parts[0][row, scene] = parts[1][row, kind] = parts[3][row, kind, color] = 40.0
        if accessory >= 0:
            parts[2][row, accessory] = 40.0
        if kind2 >= 0:
            parts[1][row, kind2] = parts[3][row, kind2, color2] = 40.0
    assert float(probe_losses(logits, labels)["loss"]) < 1e-6


def test_logits_to_words():
    logits = torch.full((1, sum(SPLITS)), -5.0)
    scenes, kinds, accessories, colors = split_logits(logits)
    scenes[0, 4] = 3.0
    kinds[0, 1], kinds[0, 6] = 1.0, 2.0
    accessories[0, 0] = 1.0
    colors[0, 1, 2], colors[0, 6, 8] = 4.0, 4.0
    seen = Probe._words(scenes[0], kinds[0], accessories[0], colors[0])
    assert seen.scene == SCENES[4] and seen.kinds == (KINDS[6], KINDS[1])
    assert seen.accessories == (ACCESSORIES[0],)
    assert seen.colors == {KINDS[6]: COLORS[8], KINDS[1]: COLORS[2]}
    none = Probe._words(scenes[0], torch.tensor([-2.0, -1.0] + [-3.0] * 12), accessories[0], colors[0])
    assert none.kinds == (KINDS[1],)  # it always names one


def test_reads_any_size_and_mode_in_any_batch(tmp_path):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    build_probe([16, 16, 16, 16]).save_pretrained(tmp_path)
    probe = Probe(tmp_path)
    images = [Image.new("L", (40, 90), 30), Image.new("RGB", (300, 200), (9, 200, 9)), Image.new("RGBA", (128, 128))]
    together = probe.read(images, batch_size=3)
    assert together == [probe.read([image])[0] for image in images] and probe.read([]) == []
    assert enlarge(torch.zeros(1, 3, 128, 128)).shape == (1, 3, SIDE, SIDE)
