import io
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import cdiff.pocket
from cdiff import concepts
from cdiff.concepts import Concept, cache_folder, expand_prompt, fetch_dataset, normalize_token, resolve_concepts
from cdiff.errors import UserError
from cdiff.schema import ConceptConfig, Config


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CDIFF_CACHE", str(tmp_path / "cache"))


def config(world: str = "photo", override: ConceptConfig | None = None, **chosen: ConceptConfig) -> Config:
    cfg = Config(concepts=chosen, concept=override or ConceptConfig())
    cfg.model.world = world
    return cfg


def folder_concept(tmp_path: Path, class_word: str | None = "dog", **more) -> ConceptConfig:
    (tmp_path / "photos").mkdir(exist_ok=True)
    return ConceptConfig(class_word=class_word, images=str(tmp_path / "photos"), **more)


def test_imports_no_torch():
    code = "import sys, cdiff.concepts; sys.exit(any(m in sys.modules for m in ('torch', 'datasets', 'PIL', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("text", ["new1", "<new1>"])
def test_tokens_may_lack_their_brackets(text):
    assert normalize_token(text) == "<new1>"


@pytest.mark.parametrize(
    "text", ["", "<>", "a b", "a/b", "..", "<../x>", "a\\b", "<<a>>", "<a", "a>", "é", "a\n", "x" * 65, "a.b", "~"]
)
def test_tokens_that_are_no_names(text):
    with pytest.raises(UserError, match="token"):
        normalize_token(text)


def test_prompts_are_expanded_at_whole_words():
    pair = [Concept("a", "<new1>", "dog", "dog", Path()), "<new1-b>"]
    assert expand_prompt("a new1 dog, new1's ball", pair) == "a <new1> dog, <new1>'s ball"
    assert expand_prompt("a <new1> dog and new1-b", pair) == "a <new1> dog and <new1-b>"
    for untouched in ("a new12 dog", "a renew1 dog", "new1-c", "New1", "<new1>"):
        assert expand_prompt(untouched, pair) == untouched
    assert expand_prompt("new1", []) == "new1"


def test_tokens_are_given_by_place(tmp_path):
    own = folder_concept(tmp_path)
    names = {"a": own, "b": own, "c": own}
    assert [concept.token for concept in resolve_concepts(config(**names))] == ["<new1>", "<new2>", "<new3>"]
    names["b"] = folder_concept(tmp_path, token="rex")
    assert [concept.token for concept in resolve_concepts(config(**names))] == ["<new1>", "<rex>", "<new3>"]
    names["b"] = folder_concept(tmp_path, token="new1")
    assert [concept.token for concept in resolve_concepts(config(**names))] == ["<new2>", "<new1>", "<new3>"]


def test_same_tokens(tmp_path):
    pair = {"a": folder_concept(tmp_path, token="<rex>"), "b": folder_concept(tmp_path, token="REX")}
    with pytest.raises(UserError, match="same token"):
        resolve_concepts(config(**pair))


def test_a_token_that_is_a_class_word(tmp_path):
    with pytest.raises(UserError, match="class word"):
        resolve_concepts(config(a=folder_concept(tmp_path, token="Dog")))


def test_class_word_and_initializer(tmp_path):
    (one,) = resolve_concepts(config(a=folder_concept(tmp_path, " stuffed  animal ")))
    assert one == Concept("a", "<new1>", "stuffed animal", "stuffed animal", tmp_path / "photos")
    (two,) = resolve_concepts(config(a=folder_concept(tmp_path, initializer="ktn")))
    assert two.initializer == "ktn"
    (three,) = resolve_concepts(config(a=folder_concept(tmp_path, initializer="class_word")))
    assert three.initializer == "dog"
    (four,) = resolve_concepts(config(a=folder_concept(tmp_path, "random")))
    assert four.initializer == "class_word"  # the word itself, not the draw
    for missing in (None, "", "  "):
        with pytest.raises(UserError, match=r"concept\.class_word=dog"):
            resolve_concepts(config(a=folder_concept(tmp_path, missing)))
    with pytest.raises(UserError, match="plain words"):
        resolve_concepts(config(a=folder_concept(tmp_path, "<new1> dog")))


def test_rare_initializers_go_by_the_order_of_the_concepts(tmp_path):
    chosen = {f"c{i}": folder_concept(tmp_path, initializer="cat" if i == 1 else None) for i in range(8)}
    cfg = config(**chosen)
    cfg.method.initializer = "rare"
    found = [concept.initializer for concept in resolve_concepts(cfg)]
    assert found[:3] == ["ktn", "cat", "ucd"] and len(set(found)) == 8
    cfg.concept.initializer = "random"
    assert {concept.initializer for concept in resolve_concepts(cfg)} == {"random"}
    with pytest.raises(UserError, match="words for 8 concepts"):
        resolve_concepts(config(override=ConceptConfig(initializer="rare"), **chosen, c8=chosen["c0"]))


def test_a_token_that_starts_from_looks_starts_from_the_word_of_the_source_that_is_used(tmp_path):
    def found(world: str, initializer: str | None = None, **more) -> str:
        own = ConceptConfig(class_word="dog", sources={"pocket": "pocket:dog", "photo": str(tmp_path)}, **more)
        cfg = config(world, ConceptConfig(initializer=initializer), dog=own)
        cfg.method.initializer = "looks"
        return resolve_concepts(cfg)[0].initializer

    looks = {"pocket": "brown"}
    assert found("pocket", looks=looks) == "brown"
    assert found("photo", looks=looks) == "dog"  # of other pictures nothing is said
    assert found("pocket") == "dog" and found("pocket", "cat", looks=looks) == "cat"
    assert found("pocket", looks=looks, images=str(tmp_path)) == "dog"  # the user's own pictures
    assert found("pocket", "looks", looks=looks) == "brown"
    with pytest.raises(UserError, match=r"concepts\.a\.looks="):
        resolve_concepts(config(override=ConceptConfig(looks=looks), a=ConceptConfig(), b=ConceptConfig()))


def test_overrides(tmp_path):
    own = ConceptConfig(class_word="cat", sources={"photo": "google/dreambooth:cat"})
    (tmp_path / "mine").mkdir()
    override = ConceptConfig(class_word="lynx", token="rex", images=str(tmp_path / "mine"))
    (one,) = resolve_concepts(config("photo", override, cat=own))
    assert one == Concept("cat", "<rex>", "lynx", "lynx", tmp_path / "mine")
    assert own.class_word == "cat"  # the configuration is left as it was
    for key, value in {"class_word": "x", "token": "x", "images": "x", "sources": {"photo": "x"}}.items():
        with pytest.raises(UserError, match=rf"concepts\.cat\.{key}="):
            resolve_concepts(config("photo", ConceptConfig(**{key: value}), cat=own, dog=own))
    pair = resolve_concepts(
        config("photo", ConceptConfig(initializer="animal"), a=folder_concept(tmp_path), b=folder_concept(tmp_path))
    )
    assert [concept.initializer for concept in pair] == ["animal", "animal"]


def test_image_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "rex").mkdir()
    (one,) = resolve_concepts(config(a=ConceptConfig(class_word="dog", images="~/rex")))
    assert one.folder == tmp_path / "rex"
    (two,) = resolve_concepts(config(a=ConceptConfig(class_word="dog", sources={"photo": "~/rex"})))
    assert two.folder == tmp_path / "rex"
    (tmp_path / "rex" / "a.jpg").write_text("x")
    for images, reason in (("~/max", "does not exist"), ("~/rex/a.jpg", "is a file")):
        with pytest.raises(UserError, match=reason):
            resolve_concepts(config(a=ConceptConfig(class_word="dog", images=images)))
    with pytest.raises(UserError, match="does not exist"):
        resolve_concepts(config(a=ConceptConfig(class_word="dog", sources={"photo": "./nowhere/at/all"})))


def test_a_world_without_pictures():
    with pytest.raises(UserError, match=r"photo world.*pictures for pocket"):
        resolve_concepts(config(a=ConceptConfig(class_word="dog", sources={"pocket": "pocket:dog"})))
    with pytest.raises(UserError, match=r"it has no pictures.*concept\.images=DIR"):
        resolve_concepts(config(a=ConceptConfig(class_word="dog")))
    with pytest.raises(UserError, match="concept=dog"):
        resolve_concepts(config())


def test_pocket_source(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(cdiff.pocket, "render_concept", lambda name: asked.append(name) or tmp_path, raising=False)
    (one,) = resolve_concepts(config("pocket", a=ConceptConfig(class_word="dog", sources={"pocket": "pocket:dog"})))
    assert one.folder == tmp_path and asked == ["dog"]


def test_cache_folder(monkeypatch):
    assert cache_folder().name == "cache"
    monkeypatch.delenv("CDIFF_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/cdiff")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "cdiff"


def encoded(color: str, kind: str) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (20, 20), color).save(data, kind)
    return data.getvalue()


def test_hub_source_is_fetched_once(monkeypatch):
    asked = []
    files = [encoded("red", "JPEG"), encoded("blue", "PNG")]
    monkeypatch.setattr(concepts, "_download", lambda *what: asked.append(what) or files)
    cfg = config(a=ConceptConfig(class_word="dog", sources={"photo": "google/dreambooth@v1.0:dog"}))
    (one,), (again,) = resolve_concepts(cfg), resolve_concepts(cfg)
    assert asked == [("google/dreambooth", "dog", "v1.0")] and one.folder == again.folder
    assert {path.name: path.read_bytes() for path in one.folder.iterdir()} == {"00.jpg": files[0], "01.png": files[1]}
    assert fetch_dataset("google/dreambooth", "dog") != one.folder  # another revision is another folder
    assert [path.name for path in one.folder.parent.iterdir() if path.name.startswith(".")] == []


def test_unwritable_cache(tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setattr(concepts, "_download", lambda *what: [b"x"])
    with pytest.raises(UserError, match="CDIFF_CACHE"):
        fetch_dataset("google/dreambooth", "dog")


def test_no_network(monkeypatch):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    pytest.importorskip("datasets")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)

    def unreachable(*args, **kwargs):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
    with pytest.raises(UserError, match=r"google/dreambooth:dog can't be reached.*concept\.images=DIR") as caught:
        fetch_dataset("google/dreambooth", "dog")
    assert "\n" not in str(caught.value)


def test_parquet_with_subsets_and_labels(tmp_path, monkeypatch):
    """A dataset laid out as google/dreambooth's: subsets in the card, parquet of `image` and `label`."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    stored = {"dog": [encoded("red", "JPEG"), encoded("blue", "PNG")], "cat": [encoded("green", "PNG")]}
    source = tmp_path / "source"
    card = ["---", "configs:"]
    for name, files in stored.items():
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
        rows = {"image": [{"bytes": data, "path": None} for data in files], "label": [0] * len(files)}
        (source / name).mkdir(parents=True)
        datasets.Dataset.from_dict(rows, features=features).to_parquet(source / name / "train-00000-of-00001.parquet")
        card += [f"- config_name: {name}", "  data_files:", "  - split: train", f"    path: {name}/train-*"]
    (source / "README.md").write_text("\n".join([*card, "---", ""]))
    assert concepts._download(str(source), "dog", None) == stored["dog"]
    with pytest.raises(UserError, match=r"can't be used.*owner/name:subset"):
        concepts._download(str(source), "horse", None)


@pytest.mark.parametrize("token", ["photo", "<photo>", "The"])
def test_a_token_named_like_a_word_of_prompts_is_refused(token):
    with pytest.raises(UserError, match="word that prompts use"):
        normalize_token(token)


def test_images_from_the_hub_by_name(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(concepts, "fetch_dataset", lambda *words: asked.append(words) or tmp_path)
    conf = ConceptConfig(class_word="dog", images="hub:google/dreambooth@main:dog")
    [concept] = resolve_concepts(Config(concepts={"rex": conf}))
    assert asked == [("google/dreambooth", "dog", "main")] and concept.folder == tmp_path
    conf.images = "hub:nothing"
    with pytest.raises(UserError, match="OWNER/NAME"):
        resolve_concepts(Config(concepts={"rex": conf}))


def test_images_may_be_a_list(tmp_path):
    (tmp_path / "list.txt").write_text("a.png\n")
    conf = ConceptConfig(class_word="dog", images=str(tmp_path / "list.txt"))
    assert resolve_concepts(Config(concepts={"rex": conf}))[0].folder == tmp_path / "list.txt"
