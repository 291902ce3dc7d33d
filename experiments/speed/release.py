"""The recipe as released, for comparison: one training step written from its description.

What it does that costs time, and cdiff does not: the VAE encodes in every step; Custom Diffusion's attention processors
run in every attention layer; both phrases of the semantic preservation loss go through the text encoder by themselves;
AdamW updates the whole token table; the loss is read from the GPU in every step. Pictures lie on the device already:
reading and augmenting them, which the release does in the step too, is left out in its favour.
"""

from __future__ import annotations

import itertools
from contextlib import nullcontext

import torch
from diffusers.models.attention_processor import CustomDiffusionAttnProcessor2_0
from torch import Tensor, nn
from torch.nn import functional as F

PROMPTS = ("photo of a <new1> dog", "a photo of a <new1> dog", "a photo of a dog")


class Release:
    """The models and one step of it. precision: fp32, or bf16 under autocast with the frozen weights in bf16."""

    def __init__(self, base, precision: str, batch: int, resolution: int) -> None:
        self.base, self.batch, self.resolution = base, batch, resolution
        self.device = base.device
        self.autocast = torch.autocast(self.device.type, torch.bfloat16) if precision == "bf16" else nullcontext()
        base.tokenizer.add_tokens(["<new1>"])
        base.text_encoder.resize_token_embeddings(len(base.tokenizer))
        self.new_id = base.tokenizer.convert_tokens_to_ids("<new1>")
        for part in (base.vae, base.unet, base.text_encoder):
            part.requires_grad_(False)
        self.table = base.text_encoder.get_input_embeddings().weight.requires_grad_(True)
        self.layers = processors(base.unet)
        trained = list(itertools.chain([self.table], self.layers.parameters()))
        self.trained = [parameter for parameter in trained if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=2e-5, betas=(0.9, 0.999), weight_decay=1e-2, eps=1e-8)
        self.ids = [self._ids(prompt) for prompt in PROMPTS]
        generator = torch.Generator().manual_seed(0)
        side = resolution // base.latent_factor
        self.pixels = [torch.randn(batch, 3, resolution, resolution, generator=generator) for _ in range(4)]
        self.pixels = [pixels.to(self.device, base.vae.dtype) for pixels in self.pixels]
        self.mask = torch.ones(batch, 1, side, side, device=self.device)
        self.done = 0

    def _ids(self, prompt: str) -> Tensor:
        tokenizer = self.base.tokenizer
        return tokenizer(
            prompt, padding="max_length", truncation=True, max_length=tokenizer.model_max_length, return_tensors="pt"
        ).input_ids.to(self.device)

    def step(self) -> float:
        """One optimiser step; returns its loss, read from the device."""
        base = self.base
        with self.autocast:
            latents = base.vae.encode(self.pixels[self.done % len(self.pixels)]).latent_dist.sample()
            latents = latents * base.vae.config.scaling_factor
            noise = torch.randn_like(latents)
            timesteps = torch.randint(base.scheduler.config.num_train_timesteps, (self.batch,), device=self.device)
            noisy = base.scheduler.add_noise(latents, noise, timesteps)
            hidden = base.text_encoder(self.ids[0].expand(self.batch, -1))[0]
            predicted = base.unet(noisy, timesteps, hidden).sample
            error = F.mse_loss(predicted.float(), noise.float(), reduction="none")
            loss = ((error * self.mask).sum([1, 2, 3]) / self.mask.sum([1, 2, 3])).mean()
            personal, of_class = (base.text_encoder(ids).pooler_output for ids in self.ids[1:])
            loss = loss + (1 - F.cosine_similarity(personal.float(), of_class.float())).mean()
        loss.backward()
        keep = torch.arange(len(self.table), device=self.device) == self.new_id
        self.table.grad[~keep] = 0  # all words but the new one; the optimiser runs over them nevertheless
        nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.done += 1
        return loss.detach().item()


def processors(unet: nn.Module) -> nn.ModuleList:
    """Custom Diffusion's processors on every attention layer; trained fp32 keys and values in the cross-attention."""
    state, found, kept = unet.state_dict(), {}, []
    for name in unet.attn_processors:
        layer = name.removesuffix(".processor")
        cross = layer.endswith("attn2")
        hidden = state[f"{layer}.to_q.weight"].shape[0]
        processor = CustomDiffusionAttnProcessor2_0(
            train_kv=cross,
            train_q_out=False,
            hidden_size=hidden,
            cross_attention_dim=unet.config.cross_attention_dim if cross else None,
        ).to(unet.device)
        if cross:
            processor.to_k_custom_diffusion.weight.data.copy_(state[f"{layer}.to_k.weight"])
            processor.to_v_custom_diffusion.weight.data.copy_(state[f"{layer}.to_v.weight"])
            kept.append(processor)
        found[name] = processor
    unet.set_attn_processor(found)
    for processor in kept:
        processor.requires_grad_(True)
    return nn.ModuleList(kept)
