"""Which GPU a device means. (Devices and precisions that are refused: test_models.)"""

from __future__ import annotations

import torch

from cdiff.devices import numbered


def test_a_gpu_without_a_number_is_the_one_that_is_chosen_here(monkeypatch):
    """A thread of its own would take the first."""
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    assert numbered(torch.device("cuda")) == torch.device("cuda:3")
    assert numbered(torch.device("cuda:1")) == torch.device("cuda:1")
    assert numbered(torch.device("cpu")) == torch.device("cpu")
