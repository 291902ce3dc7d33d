import pytest

from cdiff.data.prompts import OBJECT_TEMPLATES, caption, class_caption, load_templates, with_prefix
from cdiff.errors import UserError


@pytest.mark.parametrize(
    ("template", "prefix", "expected"),
    [
        ("photo of a {}", "", "photo of a {}"),
        ("photo of a {}", "zoomed in", "zoomed in photo of a {}"),  # as the release writes it
        ("photo of a {}", "a far away", "a far away photo of a {}"),
        ("a photo of a {}", "a far away", "a far away photo of a {}"),
        ("a photo of a {}", "close up", "a close up photo of a {}"),
        ("an image of the {}", "very small", "a very small image of the {}"),
        ("The photo of {}", "zoomed in", "The zoomed in photo of {}"),
        ("another {}", "very small", "very small another {}"),
        ("{} on the beach", "a far away", "a far away {} on the beach"),
    ],
)
def test_prefix_goes_under_the_article(template, prefix, expected):
    assert with_prefix(template, prefix) == expected


def test_captions():
    plain = load_templates("plain")
    assert caption(0, 0, plain, "<new1>", "stuffed animal") == "photo of a <new1> stuffed animal"
    assert class_caption(0, 0, ["a photo of a {}"], "dog") == "a photo of a dog"
    assert class_caption(0, 0, ["a photo of a {}"], "owl") == "a photo of an owl"
    assert caption(0, 0, ["a photo of a {}"], "<new1>", "owl", "close up") == "a close up photo of a <new1> owl"


def test_captions_are_drawn_by_seed_and_index():
    drawn = [caption(3, i, OBJECT_TEMPLATES, "<new1>", "dog") for i in range(300)]
    assert drawn == [caption(3, i, OBJECT_TEMPLATES, "<new1>", "dog") for i in range(300)]
    assert len(set(drawn)) == len(OBJECT_TEMPLATES)
    assert all(text.count("<new1> dog") == 1 for text in drawn)


def test_object_templates_are_sound():
    assert len(set(OBJECT_TEMPLATES)) == len(OBJECT_TEMPLATES)
    assert all(text.count("{}") == 1 and text == text.lower().strip() for text in OBJECT_TEMPLATES)


def test_templates_of_a_file(tmp_path):
    file = tmp_path / "mine.txt"
    file.write_text("# mine\na painting of {}\n\n  {} at home \n", encoding="utf-8")
    assert load_templates(str(file)) == ("a painting of {}", "{} at home")
    file.write_text("a painting of {}\na dog\n")
    with pytest.raises(UserError, match="Line 2"):
        load_templates(str(file))
    file.write_text("\n# nothing\n")
    with pytest.raises(UserError, match="no template"):
        load_templates(str(file))
    file.write_bytes(b"\xff\xfe\x00{}")
    with pytest.raises(UserError, match="UTF-8"):
        load_templates(str(file))
    with pytest.raises(UserError, match="neither object, plain nor a file"):
        load_templates("objects")
