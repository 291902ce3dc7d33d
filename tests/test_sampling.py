"""Images from prompts and seeds, on the tiny Stable Diffusion 1.5."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import TinyConcept

from cdiff.errors import UserError
from cdiff.methods import prepare
from cdiff.sampling import Request, image_seed, make_requests, sample, sampling_steps
from cdiff.schema import MethodConfig, SamplerConfig
from cdiff.tokens import PromptEncoder, add_tokens

CONF = SamplerConfig(name="ddim", steps=3, guidance_scale=6.0, eta=1.0, batch_size=4)


def pixels(image) -> np.ndarray:
    return np.asarray(image).astype(int)


def test_image_seed_is_fixed():
    assert image_seed(42, "a photo of a <new1> dog", 0) == 1040181783
    assert len({image_seed(s, p, i) for s in (0, 1) for p in ("a", "b", "a\n1") for i in (0, 1)}) == 12
    assert 0 <= image_seed(0, "\udc80 🐶", 3) < 2**32


def test_requests_of_repeated_prompts_are_drawn_once():
    requests = make_requests(["a dog", "a cat", "a dog"], 2, 0)
    assert [(r.prompt, r.index) for r in requests] == [("a dog", 0), ("a dog", 1), ("a cat", 0), ("a cat", 1)]
    assert sampling_steps(requests, CONF) == 3 and sampling_steps([*requests, requests[0]], CONF) == 6


@pytest.mark.parametrize(("name", "eta"), [("ddim", 0.0), ("ddim", 1.0), ("dpmpp", 0.0)])
def test_an_image_does_not_depend_on_its_batch(sd15, name, eta):
    conf = SamplerConfig(name=name, steps=3, eta=eta, batch_size=4)
    requests = make_requests(["a photo of a dog", "a cat on the beach", "a bear in the snow"], 2, 0)
    together = sample(sd15, requests, conf)
    assert len(together) == 6 and together[0].size == (64, 64)
    torch.manual_seed(3)
    alone = sample(sd15, requests[4:5], conf)[0]
    # Products of another batch size may round otherwise; the same batch gives the same bytes.
    assert np.abs(pixels(alone) - pixels(together[4])).max() <= 2
    assert np.array_equal(pixels(alone), pixels(sample(sd15, requests[4:5], conf)[0]))
    assert not np.array_equal(pixels(together[0]), pixels(together[1]))
    assert not np.array_equal(pixels(together[0]), pixels(together[2]))


def test_progress_counts_every_step(sd15):
    requests = make_requests(["a dog"], 5, 0)
    done = []
    sample(sd15, requests, CONF, progress=done.append)
    assert sum(done) == sampling_steps(requests, CONF) == 6


def test_guidance_and_negative_prompt_matter(sd15):
    requests = make_requests(["a dog"], 1, 0)
    [plain] = sample(sd15, requests, SamplerConfig(name="ddim", steps=3))
    [other] = sample(sd15, requests, SamplerConfig(name="ddim", steps=3, negative_prompt="a cat in the snow"))
    [unguided] = sample(sd15, requests, SamplerConfig(name="ddim", steps=3, guidance_scale=1.0))
    assert not np.array_equal(pixels(plain), pixels(other)) and not np.array_equal(pixels(plain), pixels(unguided))


def test_matches_the_stock_pipeline(sd15):
    """What is drawn here is what diffusers draws from the same noise."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    request = Request("a photo of a dog", 0, 5)
    ours = sample(sd15, [request], SamplerConfig(name="ddim", steps=4))[0]
    parts = {"vae": sd15.vae, "text_encoder": sd15.text_encoder, "tokenizer": sd15.tokenizer, "unet": sd15.unet}
    pipe = StableDiffusionPipeline(
        **parts,
        scheduler=DDIMScheduler.from_config(sd15.scheduler.config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(5)
    theirs = pipe(request.prompt, num_inference_steps=4, guidance_scale=6.0, generator=generator).images[0]
    assert np.abs(pixels(ours) - pixels(theirs)).max() <= 1


def test_resolution_other_than_trained(sd15):
    [image] = sample(sd15, make_requests(["a dog"], 1, 0), CONF, resolution=96)
    assert image.size == (96, 96)


def test_rows_in_training_are_used(sd15):
    rows = add_tokens(sd15, [TinyConcept()])
    prepare(sd15, MethodConfig())
    requests = make_requests(["a photo of a <new1> dog"], 1, 0)
    encoder = PromptEncoder(sd15, rows)
    [before] = sample(sd15, requests, CONF, encoder)
    with torch.no_grad():
        rows.mul_(-3)
    [after] = sample(sd15, requests, CONF, encoder)
    assert not np.array_equal(pixels(before), pixels(after))
    assert all(parameter.grad is None for parameter in sd15.unet.parameters())


def test_a_long_prompt_is_named_once(sd15, caplog):
    with caplog.at_level("WARNING", logger="cdiff"):
        sample(sd15, make_requests(["a dog " * 60], 2, 0), CONF)
    assert sum("too long" in record.message for record in caplog.records) == 1


def test_errors(sd15):
    requests = make_requests(["a dog"], 1, 0)
    with pytest.raises(UserError, match="ddim, dpmpp"):
        sample(sd15, requests, SamplerConfig(name="heun"))
    with pytest.raises(UserError, match="1000"):
        sample(sd15, requests, SamplerConfig(steps=1001))
    with torch.no_grad():
        sd15.unet.conv_out.bias.fill_(float("nan"))
    with pytest.raises(UserError, match="finite"):
        sample(sd15, requests, CONF)
