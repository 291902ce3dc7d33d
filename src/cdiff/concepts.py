"""What is learned: a new token, the class it belongs to, and a folder of its pictures.

Imports no torch: the command line reads this module for `--help`.
"""

from __future__ import annotations

import io
import re
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cdiff.cache import cache_folder
from cdiff.errors import UserError
from cdiff.hub import pinned
from cdiff.schema import ConceptConfig, Config

TOKEN_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
# Rare entries of CLIP's vocabulary, for `initializer: rare`: the release's three, then others of their kind.
RARE_TOKENS = ("ktn", "pll", "ucd", "kcr", "wcc", "dsb", "ttr", "pbb")
HUB_PREFIX = "hub:"  # images=hub:owner/name:subset
PICTURE_LISTS = (".txt", ".jsonl")
HUB_SOURCE = re.compile(  # owner/name@revision:subset
    r"(?P<dataset>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[A-Za-z0-9][\w./-]*))?(:(?P<subset>[\w.-]+))?"
)


@dataclass(frozen=True)
class Concept:
    name: str
    token: str  # "<new1>"
    class_word: str  # "dog", or several words: "stuffed animal"
    initializer: str  # the text whose embedding the token starts from, or "random"
    folder: Path  # of its pictures; or a list of them, one path a line


def resolve_concepts(cfg: Config) -> list[Concept]:
    """The chosen concepts, their tokens assigned and their pictures on this disk.

    `cfg.concept` overrides what `cfg.concepts.NAME` says. Pictures come from `images`, else from the source for the
    model's world: pocket:NAME, a hub dataset owner/name[@revision][:subset], or a folder.
    Raises UserError with the setting that mends it.
    """
    if not cfg.concepts:
        raise UserError(
            "No concept is chosen: say concept=dog, or concept=folder concept.images=DIR concept.class_word=dog."
        )
    _refuse_shared_overrides(cfg)
    merged = {name: _overridden(own, cfg.concept) for name, own in cfg.concepts.items()}
    tokens = _assign_tokens({name: conf.token for name, conf in merged.items()})
    class_words = {name: _class_word(name, conf) for name, conf in merged.items()}
    _refuse_tokens_that_are_words(tokens, class_words)
    concepts = []
    for place, (name, conf) in enumerate(merged.items()):
        word = class_words[name]
        wanted = (conf.initializer or "").strip() or cfg.method.initializer
        if wanted == "looks":  # of the source's pictures, not of the user's own
            wanted = (not conf.images and conf.looks.get(cfg.model.world)) or "class_word"
        initializer = _initializer(wanted, word, place)
        folder = _images_folder(name, conf, cfg.model.world)
        concepts.append(Concept(name, tokens[name], word, initializer, folder))
    return concepts


# A token of such a name would be written into every prompt that says the word (`expand_prompt`).
PROMPT_WORDS = frozenset(
    "a an and at by close depiction far for from good image in is it my nice of on one photo picture rendering small "
    "the this to top up very wearing with zoomed".split()
)


def normalize_token(text: str) -> str:
    """The token <new1> for new1 or <new1>. Raises UserError for what can't name a token, and with it a file."""
    text = str(text)
    name = text[1:-1] if text.startswith("<") and text.endswith(">") else text
    if not TOKEN_NAME.fullmatch(name):
        raise UserError(f"The token {text!r} must be letters, digits, _ and - (at most 64), such as new1 or <new1>.")
    if name.lower() in PROMPT_WORDS:
        raise UserError(f"The token {text!r} is a word that prompts use; choose another name, such as new1 or <rex>.")
    return f"<{name}>"


def expand_prompt(prompt: str, concepts: Iterable[Concept | str]) -> str:
    """`prompt` with the concepts' tokens in their brackets: "a new1 dog" becomes "a <new1> dog".

    Only whole words count, in exactly the token's letters. `concepts`: concepts, or their tokens.
    """
    names = [normalize_token(item if isinstance(item, str) else item.token)[1:-1] for item in concepts]
    if not names:
        return prompt
    pattern = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    return re.sub(rf"(?<![\w<-])({pattern})(?![\w>-])", r"<\1>", prompt)


# --- settings -------------------------------------------------------------------------------------------------------


def _refuse_shared_overrides(cfg: Config) -> None:
    """With several concepts, what makes them different can't be overridden for all at once."""
    if len(cfg.concepts) < 2:
        return
    for key in ("images", "token", "class_word", "sources", "looks"):
        if getattr(cfg.concept, key):
            names = ", ".join(cfg.concepts)
            first = next(iter(cfg.concepts))
            raise UserError(
                f"concept.{key} would be the same for all chosen concepts ({names}): "
                f"set it for one, as concepts.{first}.{key}=..."
            )


def _overridden(own: ConceptConfig, override: ConceptConfig) -> ConceptConfig:
    def pick(key: str) -> str | None:
        value = getattr(override, key)
        return getattr(own, key) if value is None else value

    sources, looks = ({**(getattr(own, key) or {}), **(getattr(override, key) or {})} for key in ("sources", "looks"))
    return ConceptConfig(pick("class_word"), pick("token"), pick("initializer"), pick("images"), sources, looks)


def _assign_tokens(wanted: dict[str, str | None]) -> dict[str, str]:
    """concept -> token; one without takes <newI> by its place, or the next number that is free."""
    given = {name: normalize_token(token) for name, token in wanted.items() if token is not None}
    owners: dict[str, str] = {}
    for name, token in given.items():
        # two that differ in case alone would be one file on some disks, and one word to CLIP's tokenizer
        if other := owners.get(token.lower()):
            raise UserError(f"The concepts {other} and {name} have the same token {token}: give each its own.")
        owners[token.lower()] = name
    tokens = {}
    for place, name in enumerate(wanted, 1):
        while name not in given and f"<new{place}>" in owners:
            place += 1
        tokens[name] = given.get(name, f"<new{place}>")
        owners[tokens[name].lower()] = name
    return tokens


def _class_word(name: str, conf: ConceptConfig) -> str:
    word = " ".join((conf.class_word or "").split())
    if not word:
        raise UserError(f"The concept {name} has no class word: say what it is, such as concept.class_word=dog.")
    if re.search(r"[<>{}]", word):
        raise UserError(
            f"The class word {word!r} of the concept {name} must be plain words, such as concept.class_word=dog."
        )
    return word


def _initializer(wanted: str, class_word: str, place: int) -> str:
    """What the token of the concept at `place` (from 0) starts from, as Concept.initializer says it."""
    if wanted == "class_word":
        return wanted if class_word == "random" else class_word
    if wanted != "rare":
        return wanted
    if place >= len(RARE_TOKENS):
        raise UserError(
            f"initializer=rare has words for {len(RARE_TOKENS)} concepts; set concepts.NAME.initializer=WORD."
        )
    return RARE_TOKENS[place]


def _refuse_tokens_that_are_words(tokens: dict[str, str], class_words: dict[str, str]) -> None:
    """A token named as a class word would be written into every prompt that says the word (expand_prompt)."""
    words = {word.lower() for text in class_words.values() for word in text.split()}
    for name, token in tokens.items():
        if token[1:-1].lower() in words:
            raise UserError(
                f"The token {token} of the concept {name} is also a class word: choose a name that is no word."
            )


# --- pictures -------------------------------------------------------------------------------------------------------


def _images_folder(name: str, conf: ConceptConfig, world: str) -> Path:
    if (conf.images or "").startswith(HUB_PREFIX):
        return _from_hub(conf.images.removeprefix(HUB_PREFIX), name)
    if conf.images:
        return _existing_folder(conf.images, f"the images of the concept {name}")
    sources = {key: value for key, value in conf.sources.items() if value}
    if world not in sources:
        have = f"it has pictures for {', '.join(sources)}" if sources else "it has no pictures"
        raise UserError(
            f"The concept {name} has no pictures for a model of the {world} world ({have}): "
            f"choose another model=, or give your own with concept.images=DIR."
        )
    source = sources[world]
    if source.startswith("pocket:"):
        from cdiff.pocket import render_concept

        return Path(render_concept(source.removeprefix("pocket:")))
    if Path(source).expanduser().is_dir():
        return Path(source).expanduser()
    if match := HUB_SOURCE.fullmatch(source):
        return fetch_dataset(match["dataset"], match["subset"], match["revision"])
    return _existing_folder(source, f"the {world} source of the concept {name}")


def _from_hub(text: str, name: str) -> Path:
    if match := HUB_SOURCE.fullmatch(text):
        return fetch_dataset(match["dataset"], match["subset"], match["revision"])
    raise UserError(f"the images of the concept {name}, {HUB_PREFIX}{text}, must be {HUB_PREFIX}OWNER/NAME[:SUBSET].")


def _existing_folder(text: str, what: str) -> Path:
    folder = Path(text).expanduser()
    if folder.is_dir() or (folder.is_file() and folder.suffix.lower() in PICTURE_LISTS):
        return folder
    if folder.exists():
        raise UserError(f"{what}, {text}, is a file: give the folder that holds the pictures, or a list (.txt).")
    raise UserError(f"{what}, {text}, is a folder that does not exist: correct concept.images=DIR.")


def fetch_dataset(dataset: str, subset: str | None = None, revision: str | None = None) -> Path:
    """A folder with the pictures of a hub dataset, as stored there; fetched once, then read from the cache.

    `revision`: a commit, tag or branch; a branch is not looked up again once cached.
    """
    label = "--".join(part.replace("/", "--") for part in (dataset, subset, revision) if part)
    target = cache_folder() / "concepts" / label
    if target.is_dir():
        return target
    pictures = _download(dataset, subset, revision)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=target.parent))
    except OSError as error:
        raise UserError(
            f"The cache folder {target.parent} can't be written ({error.strerror}): set CDIFF_CACHE=DIR."
        ) from error
    try:
        for number, data in enumerate(pictures):
            (partial / f"{number:02d}{_suffix(data)}").write_bytes(data)
        partial.chmod(0o755)
        partial.rename(target)  # at once, so that a cached folder is a whole one
    except OSError as error:
        if not target.is_dir():  # else another process was first
            raise UserError(f"The pictures of {dataset} can't be kept in {target} ({error.strerror}).") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _download(dataset: str, subset: str | None, revision: str | None) -> list[bytes]:
    """The image files of a dataset's rows, undecoded; the first image column, the train split where there is one."""
    label = dataset + (f":{subset}" if subset else "")
    offline = "give a folder of your own with concept.images=DIR, which needs no network"
    try:
        import datasets
        import huggingface_hub
    except ImportError as error:
        raise UserError(f"The hub dataset {label} needs `pip install datasets`; or {offline}.") from error
    try:
        # Asks once, where load_dataset would try for half a minute before it says that there is no network.
        commit = revision if Path(dataset).is_dir() else pinned(dataset, revision, "dataset")
        splits = datasets.load_dataset(dataset, subset, revision=commit)
        pictures = _image_files(splits["train"] if "train" in splits else next(iter(splits.values())))
    except (huggingface_hub.errors.RepositoryNotFoundError, huggingface_hub.errors.RevisionNotFoundError) as error:
        at = f" at revision {revision}" if revision else ""
        raise UserError(f"The hub has no dataset {dataset}{at} that you may read; {offline}.") from error
    except (ValueError, KeyError) as error:  # an unknown or missing subset; the message lists those there are
        raise UserError(
            f"The hub dataset {label} can't be used ({_first_line(error)}): write owner/name:subset."
        ) from error
    except Exception as error:  # the network, in the words of several libraries
        raise UserError(f"The hub dataset {label} can't be reached ({type(error).__name__}): {offline}.") from error
    if not pictures:
        raise UserError(f"The hub dataset {label} holds no pictures; {offline}.")
    return pictures


def _image_files(rows) -> list[bytes]:
    """What the first image column of a `datasets.Dataset` stores; nothing without such a column."""
    import datasets

    columns = [key for key, kind in rows.features.items() if isinstance(kind, datasets.Image)]
    if not columns:
        return []
    cells = rows.cast_column(columns[0], datasets.Image(decode=False))[columns[0]]
    return [cell["bytes"] or Path(cell["path"]).read_bytes() for cell in cells if cell]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _suffix(data: bytes) -> str:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data)) as image:
            return {"JPEG": ".jpg", "MPO": ".jpg"}.get(image.format, f".{image.format.lower()}")
    except (UnidentifiedImageError, Image.DecompressionBombError):
        return ".jpg"  # named when it is read as a picture
