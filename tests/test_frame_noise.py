import torch

from cdiff.frame_noise import share_noise


def test_frames_correlate_by_the_share_and_keep_unit_variance():
    generator = torch.Generator().manual_seed(0)
    own, common = (torch.randn(4, 4, frames, 64, 64, generator=generator) for frames in (3, 1))
    for share in (0.3, 0.9):
        noise = share_noise(own, common, share)
        rows = noise.transpose(1, 2).transpose(0, 1).reshape(3, -1)
        assert torch.allclose(torch.cov(rows), share + (1 - share) * torch.eye(3), atol=0.02)


def test_the_ends():
    own, common = torch.randn(1, 2, 3, 4, 4), torch.randn(1, 2, 1, 4, 4)
    assert torch.equal(share_noise(own, common, 0.0), own)
    assert torch.equal(share_noise(own, common, 1.0), common.expand_as(own))
