import numpy as np
import pytest
import torch
from tiny import TinyConcept

from cdiff.losses import phrases, semantic_preservation_loss
from cdiff.tokens import PromptEncoder, add_tokens

CONCEPTS = [TinyConcept(), TinyConcept(token="<new2>", class_word="teapot", initializer="red hat")]


def test_phrases_are_the_papers():
    assert phrases("<new1>", "dog") == ("a photo of a <new1> dog", "a photo of a dog")


def hidden_in_float64(base, rows, words: list[str]) -> tuple[np.ndarray, list[int]]:
    """A causal CLIP text tower written out in float64 numpy, from the stored weights; returns hidden states and ids."""
    weights = {name: tensor.detach().double().numpy() for name, tensor in base.text_encoder.state_dict().items()}
    table = np.concatenate([weights["embeddings.token_embedding.weight"], rows.detach().double().numpy()])
    ids = [49406, *(base.tokenizer.get_vocab()[word] for word in words), 49407]
    x = table[ids] + weights["embeddings.position_embedding.weight"][: len(ids)]
    for layer in range(2):
        part = {k.split(f"layers.{layer}.")[1]: v for k, v in weights.items() if f"layers.{layer}." in k}
        x = x + attention(norm(x, part, "layer_norm1"), part)
        hidden = linear(norm(x, part, "layer_norm2"), part, "mlp.fc1")
        x = x + linear(hidden / (1 + np.exp(-1.702 * hidden)), part, "mlp.fc2")
    return norm(x, weights, "final_layer_norm"), ids


def linear(x, part, name):
    return x @ part[f"{name}.weight"].T + part[f"{name}.bias"]


def norm(x, part, name):
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return scaled * part[f"{name}.weight"] + part[f"{name}.bias"]


def attention(x, part, heads=4):
    length, width = x.shape
    q, k, v = (
        linear(x, part, f"self_attn.{n}_proj").reshape(length, heads, -1).transpose(1, 0, 2) for n in ("q", "k", "v")
    )
    scores = q @ k.transpose(0, 2, 1) / np.sqrt(width // heads)
    scores[:, np.triu(np.ones((length, length), bool), 1)] = -np.inf
    share = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = (share / share.sum(-1, keepdims=True)) @ v
    return linear(mixed.transpose(1, 0, 2).reshape(length, width), part, "self_attn.out_proj")


def expected(base, rows, kind: str) -> float:
    values = []
    for token, words in (("<new1>", ["dog</w>"]), ("<new2>", ["tea", "pot</w>"])):
        start = ["a</w>", "photo</w>", "of</w>", "a</w>"]
        own, own_ids = hidden_in_float64(base, rows, [*start, token, *words])
        plain, _ = hidden_in_float64(base, rows, [*start, *words])
        f = own[own_ids.index(max(own_ids)) if kind == "release" else -1]
        g = plain[-1]
        values.append(1 - f @ g / np.linalg.norm(f) / np.linalg.norm(g))
    return float(np.mean(values))


def spl(encoder, kind: str) -> torch.Tensor:
    pairs = [phrases(concept.token, concept.class_word) for concept in CONCEPTS]
    (personal,) = encoder.encode([pair[0] for pair in pairs])
    plain = encoder.constant([pair[1] for pair in pairs])
    return semantic_preservation_loss(encoder.feature(personal, kind), encoder.feature(plain, kind))


@pytest.mark.parametrize("kind", ["eos", "release"])
def test_value_equals_an_independent_float64_computation(sd15, kind):
    rows = add_tokens(sd15, CONCEPTS)
    with torch.no_grad():
        rows.add_(torch.randn(rows.shape, generator=torch.Generator().manual_seed(1)))
    value = spl(PromptEncoder(sd15, rows), kind).item()
    assert value > 0.01  # the test would be empty if both phrases were one
    assert value == pytest.approx(expected(sd15, rows, kind), abs=1e-5)


def test_gradient_reaches_the_rows_alone_and_a_step_lowers_the_loss(sd15):
    rows = add_tokens(sd15, CONCEPTS)
    with torch.no_grad():
        rows.add_(torch.randn(rows.shape, generator=torch.Generator().manual_seed(1)))
    encoder = PromptEncoder(sd15, rows)
    optimizer = torch.optim.AdamW([rows], lr=0.05)
    losses = []
    for _ in range(5):
        loss = spl(encoder, "eos")
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
    assert all(p.grad is None for p in sd15.text_encoder.parameters())


def test_same_features_give_zero_and_opposite_two():
    features = torch.randn(3, 16)
    assert semantic_preservation_loss(features, features).item() == pytest.approx(0, abs=1e-6)
    assert semantic_preservation_loss(features, -features).item() == pytest.approx(2)
