"""What holds for every input: parsers of tokens, prompts and words; augmentation with masks; files of weights."""

from __future__ import annotations

import string
import zipfile
from io import BytesIO
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

from cdiff.adapter import load_adapter, parameter_name
from cdiff.adapter.formats import check_token_name
from cdiff.adapter.reading import read_tensors
from cdiff.checkpoint import CHECKSUMS, Store
from cdiff.compose import register_resolvers
from cdiff.concepts import expand_prompt, normalize_token
from cdiff.convert import to_config, to_dict
from cdiff.data.augment import apply_view, sample_view
from cdiff.data.prompts import caption
from cdiff.drawing import read_prompts
from cdiff.errors import UserError
from cdiff.locks import LOCK_FILE, RunLock
from cdiff.overrides import read_overrides
from cdiff.schema import AugmentConfig
from cdiff.storage import read_json
from cdiff.suggest import did_you_mean
from cdiff.untrusted import read_yaml

FEW = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
TEXT = st.text(max_size=60)


@FEW
@given(TEXT)
def test_a_token_that_is_taken_names_a_file_of_its_folder(text):
    try:
        token = normalize_token(text)
    except UserError:
        return
    check_token_name(token)
    assert Path("folder", token).parent == Path("folder") and token == normalize_token(token)
    assert set(token[1:-1]) <= set(string.ascii_letters + string.digits + "_-")


@FEW
@given(TEXT)
def test_a_token_of_an_adapter_stays_in_its_folder(text):
    try:
        check_token_name(text)
    except UserError:
        return
    resolved = Path("/folder", f"{text}.safetensors").resolve()
    assert resolved.parent == Path("/folder")


@FEW
@given(TEXT, st.sampled_from(["new1", "<rex>", "my-dog"]))
def test_writing_tokens_out_twice_is_writing_them_out_once(prompt, token):
    once = expand_prompt(prompt, [token])
    assert expand_prompt(once, [token]) == once
    assert once.replace("<", "").replace(">", "") == prompt.replace("<", "").replace(">", "")


@FEW
@given(st.integers(0, 10**6), st.integers(0, 10**6), st.sampled_from(["dog", "apple", "stuffed animal"]))
def test_a_caption_holds_token_and_class_once(seed, index, word):
    text = caption(seed, index, ("a photo of a {}", "the {}"), "<new1>", word, "zoomed in")
    assert text.count(f"<new1> {word}") == 1 and "{}" not in text


@FEW
@given(st.lists(TEXT, max_size=4))
def test_any_words_are_read_or_refused_with_a_sentence(words):
    register_resolvers()
    try:
        read_overrides(words, {"model": {"pocket": Path()}}, multirun=False)
    except UserError as error:
        assert str(error).strip()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@FEW
@given(st.dictionaries(st.sampled_from(["train", "seed", "concepts", "loss", "runs", "x", "prompt"]), JSON))
def test_any_values_make_a_configuration_or_a_sentence(values):
    try:
        config = to_config(values)
    except UserError as error:
        assert str(error).strip()
    else:
        assert to_config(to_dict(config)) == config


@FEW
@given(st.text(max_size=20), st.lists(st.text(max_size=8), max_size=4))
def test_a_suggestion_ends_as_a_sentence(word, choices):
    assert did_you_mean(word, choices).endswith((".", "?"))


@pytest.mark.parametrize("read", [read_prompts, read_json, read_yaml])
def test_any_bytes_are_read_or_refused_with_the_files_name(read, tmp_path):
    @FEW
    @given(st.binary(max_size=200) | st.text(alphabet="[]{}&*:!- \n\tab'\"%", max_size=60).map(str.encode))
    def check(data):
        file = tmp_path / "strange.txt"
        file.write_bytes(data)
        try:
            read(file)
        except UserError as error:
            assert "strange.txt" in str(error) and "\n" not in str(error)

    check()


@FEW
@given(st.binary(max_size=80))
def test_a_lock_file_of_any_bytes_is_taken_over(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("lock")
    (folder / LOCK_FILE).write_bytes(data)
    RunLock.acquire(folder).release()


# ---- augmentation ----


@FEW
@given(
    width=st.integers(16, 300),
    height=st.integers(16, 300),
    factor=st.sampled_from([4, 8]),
    cells=st.integers(8, 16),  # fewer, and a picture at its smallest may hold no whole cell
    index=st.integers(0, 10_000),
    shrink=st.floats(0, 1),
    zoom=st.floats(1, 2),
)
def test_pixels_count_where_the_picture_is_and_nowhere_else(width, height, factor, cells, index, shrink, zoom):
    """The mask marks whole latent cells, and every cell it marks lies on the picture and not on the black around it."""
    conf = AugmentConfig(shrink_probability=shrink, zoom_min=1.0, zoom_max=zoom)
    side = factor * cells
    view = sample_view(index, "seed", 3, side, conf)
    pixels, mask = apply_view(Image.new("RGB", (width, height), "white"), view, side, factor)
    assert pixels.shape == (3, side, side) and mask.shape == (1, cells, cells)
    assert pixels.min() >= -1 and pixels.max() <= 1 and pixels.isfinite().all()
    assert set(mask.unique().tolist()) <= {0.0, 1.0} and mask.sum() > 0
    marked = mask.repeat_interleave(factor, 1).repeat_interleave(factor, 2).bool()[0]
    assert (pixels[:, marked] > 0.98).all(), "the mask counts pixels outside of the picture"
    again, same = apply_view(Image.new("RGB", (width, height), "white"), view, side, factor)
    assert torch.equal(pixels, again) and torch.equal(mask, same)
    assert 0 <= view.picture < 3


# ---- adapters ----

WHOLE = save({"<new1>": torch.arange(32.0)})


def as_bin(tensors: dict) -> bytes:
    stream = BytesIO()
    torch.save(tensors, stream)
    return stream.getvalue()


LEGACY = BytesIO()
torch.save({"<new1>": torch.arange(32.0)}, LEGACY, _use_new_zipfile_serialization=False)
SEEDS = (WHOLE, as_bin({"<new1>": torch.arange(32.0)}), LEGACY.getvalue())


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    seed=st.sampled_from(range(len(SEEDS))),
    cut=st.integers(0, 2000),
    changes=st.lists(st.tuples(st.integers(0, 5000), st.binary(min_size=1, max_size=8)), max_size=4),
)
def test_a_file_of_weights_is_read_or_refused_whatever_its_bytes(tmp_path_factory, seed, cut, changes):
    data = bytearray(SEEDS[seed])
    for place, piece in changes:
        start = place % len(data)
        data[start : start + len(piece)] = piece
    data = data[: max(0, len(data) - cut % (len(data) + 1))] if cut < 1000 else data
    file = tmp_path_factory.mktemp("fuzz") / "<new1>.bin"
    file.write_bytes(bytes(data))
    try:
        adapter = load_adapter(file)
    except UserError as error:
        assert "<new1>.bin" in str(error) or "can't be a token" in str(error)
    else:
        assert all(t.isfinite().all() and t.ndim == 1 for t in adapter.tokens.values())


@FEW
@given(st.binary(max_size=300))
def test_bytes_of_nobody_are_no_weights(tmp_path_factory, data):
    file = tmp_path_factory.mktemp("fuzz") / "w.bin"
    file.write_bytes(data)
    with pytest.raises(UserError, match=r"w\.bin"):
        read_tensors(file)


@FEW
@given(st.dictionaries(st.text(min_size=1, max_size=12), st.binary(max_size=50), max_size=3))
def test_archives_of_anything_are_refused(tmp_path_factory, entries):
    file = tmp_path_factory.mktemp("fuzz") / "w.bin"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name.replace("\x00", "_"), data)
    with pytest.raises(UserError, match=r"w\.bin"):
        read_tensors(file)


@FEW
@given(st.text(max_size=80))
def test_a_tensors_name_is_a_parameters_or_none(name):
    found = parameter_name(name)
    assert found is None or (".attn" in found and "custom_diffusion" not in found)


@FEW
@given(st.sampled_from(["state.json", "weights.safetensors", CHECKSUMS]), st.integers(0, 10**6), st.integers(1, 255))
def test_one_changed_byte_of_a_checkpoint_is_found(tmp_path_factory, name, place, flip):
    store = Store(tmp_path_factory.mktemp("run"), keep=2)
    for step in (1, 2):
        store.save(step, {}, {"weights": {"rows": torch.full((4,), float(step))}})
    file = store.folder / "step-000002" / name
    data = bytearray(file.read_bytes())
    data[place % len(data)] ^= flip
    file.write_bytes(bytes(data))
    found = store.newest()
    assert found.step == 1 or (
        name == CHECKSUMS and torch.equal(found.tensors["weights"]["rows"], torch.full((4,), 2.0))
    )
