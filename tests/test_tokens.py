import logging

import pytest
import torch
from tiny import VOCABULARY, TinyConcept

from cdiff.errors import UserError
from cdiff.models import load_base
from cdiff.schema import ModelConfig
from cdiff.tokens import PromptEncoder, add_tokens, eos_positions, feature_positions, write_rows

PROMPT = "a photo of a <new1> dog"


def stock(base, prompts):
    ids = base.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    return base.text_encoder(ids)


def test_vocabulary_is_clips(sd15):
    tokenizer = sd15.tokenizer
    assert len(tokenizer) == VOCABULARY
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (49406, 49407, 49407)
    assert sd15.text_encoder.config.eos_token_id == 2
    assert tokenizer.tokenize("teapot") == ["tea", "pot</w>"]


def test_initial_rows(sd15):
    table = sd15.text_encoder.get_input_embeddings().weight.detach().clone()
    one = {word: table[sd15.tokenizer.convert_tokens_to_ids(word)] for word in ("dog</w>", "tea", "pot</w>", "red</w>")}
    concepts = [
        TinyConcept("<new1>", "dog", "class_word"),
        TinyConcept("<new2>", "teapot", "class_word"),
        TinyConcept("<new3>", "teapot", "red"),
    ]
    rows = add_tokens(sd15, concepts)
    assert rows.dtype == torch.float32 and rows.requires_grad and rows.shape == (3, 32)
    torch.testing.assert_close(rows[0], one["dog</w>"])
    torch.testing.assert_close(rows[1], (one["tea"] + one["pot</w>"]) / 2)
    torch.testing.assert_close(rows[2], one["red</w>"])
    assert sd15.tokenizer.convert_tokens_to_ids(["<new1>", "<new2>", "<new3>"]) == [49408, 49409, 49410]
    assert torch.equal(sd15.text_encoder.get_input_embeddings().weight, table)


def test_the_mean_of_several_words_and_of_what_the_vocabulary_calls_rare(sd15, monkeypatch):
    table = sd15.text_encoder.get_input_embeddings().weight.detach().clone()
    monkeypatch.setattr("cdiff.tokens.RARE_TOKENS", ("tea",))  # an entry without a word's end, as ktn is in CLIP

    def of(*pieces):
        return table[sd15.tokenizer.convert_tokens_to_ids(list(pieces))].mean(dim=0)

    wanted = {
        "dog, cat": (of("dog</w>") + of("cat</w>")) / 2,
        "dog cat": (of("dog</w>") + of("cat</w>")) / 2,
        "teapot, dog": (of("tea", "pot</w>") + of("dog</w>")) / 2,  # words count alike, however many tokens they are
        "tea": of("tea"),
        "zzz": of("z", "z", "z</w>"),
    }
    rows = add_tokens(sd15, [TinyConcept(f"<new{i}>", "dog", text) for i, text in enumerate(wanted)])
    for row, expected in zip(rows, wanted.values(), strict=True):
        torch.testing.assert_close(row.detach(), expected)


def test_a_random_start_is_seeded_and_looks_like_the_table(sd15_folder):
    def draw(seed, count=1):
        base = load_base(ModelConfig(path=str(sd15_folder)), torch.float32, "cpu")
        with torch.no_grad():
            base.text_encoder.get_input_embeddings().weight.mul_(3).add_(2)
        return add_tokens(base, [TinyConcept(f"<new{i}>", "dog", "random") for i in range(count)], seed).detach()

    rows = draw(0, 40)
    assert torch.equal(draw(0), rows[:1]) and not torch.equal(draw(1), rows[:1])
    assert not torch.equal(rows[0], rows[1])
    assert abs(rows.mean() - 2) < 0.2 and abs(rows.std() - 1.5) < 0.15


@pytest.mark.parametrize("token", ["dog", "<|endoftext|>", "photo"])
def test_a_token_of_the_vocabulary_is_refused(sd15, token):
    with pytest.raises(UserError, match="already has"):
        add_tokens(sd15, [TinyConcept(token=token)])
    assert len(sd15.tokenizer) == VOCABULARY


def test_a_token_twice_is_refused(sd15):
    with pytest.raises(UserError, match="share a token"):
        add_tokens(sd15, [TinyConcept(), TinyConcept(token="<NEW1>")])
    add_tokens(sd15, [TinyConcept()])
    with pytest.raises(UserError, match="already has <New1>"):
        add_tokens(sd15, [TinyConcept(token="<New1>")])


def test_no_concept_and_an_unknown_initializer_are_refused(sd15):
    with pytest.raises(UserError, match="no concept"):
        add_tokens(sd15, [])
    with pytest.raises(UserError, match="initializer"):
        add_tokens(sd15, [TinyConcept(initializer=" ")])


def test_encoding_equals_the_stock_text_encoder(sd15):
    """With the rows written into a real table, transformers itself gives the same hidden states."""
    prompts = [PROMPT, "", "A <new2>hat and a <new1>"]
    rows = add_tokens(sd15, [TinyConcept(), TinyConcept(token="<new2>", initializer="hat")])
    (encoded,) = PromptEncoder(sd15, rows).encode(prompts)
    table = sd15.text_encoder.get_input_embeddings().weight.detach().clone()
    write_rows(sd15, rows, ["<new1>", "<new2>"])
    grown = sd15.text_encoder.get_input_embeddings().weight
    assert torch.equal(grown[:VOCABULARY], table) and torch.equal(grown[VOCABULARY:], rows)
    assert not grown.requires_grad
    assert torch.equal(encoded.hidden, stock(sd15, prompts).last_hidden_state)
    assert torch.equal(PromptEncoder(sd15).encode_sample(prompts).hidden, encoded.hidden)


def test_one_pass_for_several_lists(sd15, monkeypatch):
    rows = add_tokens(sd15, [TinyConcept()])
    encoder = PromptEncoder(sd15, rows)
    passes = []
    forward = encoder._forward
    monkeypatch.setattr(encoder, "_forward", lambda ids: passes.append(len(ids[0])) or forward(ids))
    first, second = encoder.encode([PROMPT, "a dog"], ["a cat"])
    assert passes == [3] and first.hidden.shape == (2, 77, 32) and second.ids.shape == (1, 77)
    torch.testing.assert_close(second.hidden, stock(sd15, ["a cat"]).last_hidden_state)


def test_features_on_the_quirk_of_eos_token_id_2(sd15):
    """Padding is the end token too, and the new token's id is above it: transformers pools at the new token."""
    rows = add_tokens(sd15, [TinyConcept(), TinyConcept(token="<new2>", initializer="cat")])
    encoder = PromptEncoder(sd15, rows)
    (encoded,) = encoder.encode([PROMPT, "a photo of a <new1> cat", "a dog", "a <new1> and a <new2> dog"])
    assert feature_positions(encoded.ids, 49407, "eos").tolist() == [7, 7, 3, 7]
    assert feature_positions(encoded.ids, 49407, "release").tolist() == [5, 5, 3, 5]
    eos, release = encoder.feature(encoded), encoder.feature(encoded, "release")
    assert not torch.allclose(eos[0], eos[1])
    assert torch.equal(release[0], release[1])  # before the class word, under the causal mask
    write_rows(sd15, rows, ["<new1>", "<new2>"])
    torch.testing.assert_close(release[:1], stock(sd15, [PROMPT]).pooler_output)
    with pytest.raises(UserError, match="spl_feature"):
        encoder.feature(encoded, "mean")


def test_padding_by_another_token_as_in_stable_diffusion_2(sd15):
    sd15.tokenizer.pad_token = "!"
    encoder = PromptEncoder(sd15)
    encoded = encoder.encode_sample(["a dog", "a photo of a dog"])
    assert encoded.ids[0, :6].tolist() == [*sd15.tokenizer("a dog").input_ids, 0, 0]
    assert feature_positions(encoded.ids, 49407).tolist() == [3, 6]
    assert torch.equal(encoded.hidden, stock(sd15, ["a dog", "a photo of a dog"]).last_hidden_state)


def test_first_end_token_is_found_past_the_start():
    assert eos_positions(torch.tensor([[9, 1, 9, 9], [9, 9, 9, 9], [9, 1, 2, 9]]), 9).tolist() == [2, 1, 3]


def test_only_the_rows_move_under_weight_decay(sd15):
    """Every frozen weight is bit-identical after AdamW steps over all that asks for a gradient."""
    before = {name: tensor.clone() for name, tensor in sd15.text_encoder.state_dict().items()}
    rows = add_tokens(sd15, [TinyConcept()])
    start = rows.detach().clone()
    trained = [p for p in (*sd15.text_encoder.parameters(), rows) if p.requires_grad]
    assert len(trained) == 1
    optimizer = torch.optim.AdamW(trained, lr=0.1, weight_decay=0.5)
    encoder = PromptEncoder(sd15, rows)
    for _ in range(2):
        encoder.encode([PROMPT])[0].hidden.square().mean().backward()
        optimizer.step()
    assert not torch.equal(rows, start)
    write_rows(sd15, rows, ["<new1>"])
    after = sd15.text_encoder.state_dict()
    key = "embeddings.token_embedding.weight"
    after[key] = after[key][:VOCABULARY]
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_half_precision_base_keeps_fp32_rows(sd15):
    sd15.text_encoder.to(torch.bfloat16)
    rows = add_tokens(sd15, [TinyConcept()])
    (encoded,) = PromptEncoder(sd15, rows).encode([PROMPT])
    assert encoded.hidden.dtype == torch.bfloat16
    encoded.hidden.float().square().mean().backward()
    assert rows.grad.dtype == torch.float32 and rows.grad.abs().max() > 0


def test_a_table_longer_than_the_vocabulary(sd15):
    """The pocket's table may hold spare rows: the new ids then lie inside it, and its rows must not be used."""
    sd15.text_encoder.resize_token_embeddings(VOCABULARY + 8, mean_resizing=False)
    rows = add_tokens(sd15, [TinyConcept()])
    encoder = PromptEncoder(sd15, rows)
    (encoded,) = encoder.encode([PROMPT])
    write_rows(sd15, rows, ["<new1>"])
    assert sd15.text_encoder.get_input_embeddings().weight.shape[0] == VOCABULARY + 8
    assert torch.equal(encoded.hidden, stock(sd15, [PROMPT]).last_hidden_state)


def test_a_long_prompt_is_cut_and_said_once(sd15, caplog):
    encoder = PromptEncoder(sd15)
    prompt = "a photo of a dog" + " in the snow" * 40 + " wearing headphones"
    with caplog.at_level(logging.WARNING, logger="cdiff"):
        ids = encoder.tokenize([prompt, prompt])
    assert ids.shape == (2, 77) and ids[0, -1] == 49407
    assert torch.equal(encoder.encode_sample([prompt]).hidden, stock(sd15, [prompt]).last_hidden_state)
    (record,) = caplog.records
    assert prompt in record.getMessage() and "wearing headphones" in record.getMessage()


def test_a_token_without_an_embedding_is_never_encoded(sd15):
    first = add_tokens(sd15, [TinyConcept()])
    second = add_tokens(sd15, [TinyConcept(token="<new2>")])
    for rows in (None, second):
        with pytest.raises(ValueError, match="embedding"):
            PromptEncoder(sd15, rows)
    PromptEncoder(sd15, torch.cat([first, second]))


def test_constants_are_encoded_once_and_hold_no_trained_token(sd15, monkeypatch):
    rows = add_tokens(sd15, [TinyConcept()])
    encoder = PromptEncoder(sd15, rows)
    first = encoder.constant(["a photo of a dog", ""])
    assert not first.hidden.requires_grad
    monkeypatch.setattr(encoder, "_forward", None)
    again = encoder.constant(["", "a photo of a dog", ""])
    assert torch.equal(again.hidden[[1, 0]], first.hidden) and torch.equal(again.ids[[1, 2]], first.ids)
    with pytest.raises(ValueError, match="not a constant"):
        encoder.constant([PROMPT])
