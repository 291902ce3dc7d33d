"""Joint training: SPL is averaged over the concepts, whatever their class words are."""

import pytest
import torch
from tiny import TinyConcept

from cdiff.engine import Personalizer
from cdiff.losses import phrases
from cdiff.schema import Config
from cdiff.tokens import add_tokens

EIGHT = ("dog", "cat", "teapot", "toy bear", "red clock", "teapot boot", "bird", "car")


@pytest.mark.parametrize("count", [2, 8])
def test_spl_of_several_concepts_is_the_mean_and_its_gradient_too(sd15, count):
    """Class words of one token, of several ("teapot"), and of several words; each concept alone against all."""
    concepts = [TinyConcept(f"<new{i}>", word, "red") for i, word in enumerate(EIGHT[:count], 1)]
    rows = add_tokens(sd15, concepts)
    with torch.no_grad():
        rows.add_(0.3 * torch.randn(rows.shape, generator=torch.Generator().manual_seed(0)))
    module = Personalizer(sd15, concepts, rows, Config())

    def spl():  # module.spl is for logging, without a gradient
        return module._spl(module.encoder.encode(module.concept_phrases)[0].states)

    together = spl()
    together.backward()
    gradient, losses = rows.grad.clone(), []
    for index, concept in enumerate(concepts):
        rows.grad = None
        hidden = module.encoder.encode([phrases(concept.token, concept.class_word)[0]])[0]
        feature = module.encoder.feature(hidden)
        of_class = module.encoder.feature(module.encoder.constant([phrases("", concept.class_word)[1]]))
        loss = 1 - torch.cosine_similarity(feature, of_class).squeeze()
        loss.backward()
        losses.append(loss)
        others = torch.arange(count) != index
        assert rows.grad[others].abs().sum() == 0 and rows.grad[index].abs().sum() > 0
        torch.testing.assert_close(gradient[index], rows.grad[index] / count)
    torch.testing.assert_close(together, torch.stack(losses).mean())
