"""Which prompts are drawn."""

from __future__ import annotations

import pytest
from tiny import TinyConcept

from cdiff.drawing import chosen_prompts, default_prompts, read_prompts
from cdiff.errors import UserError
from cdiff.schema import Config

DOG, TEAPOT = TinyConcept(), TinyConcept("<new2>", "teapot", name="teapot")


def test_default_prompts_follow_the_class():
    assert default_prompts([DOG]) == [
        "a photo of a <new1> dog",
        "a <new1> dog wearing headphones",
        "a <new1> dog on the beach",
        "a <new1> dog in the snow",
    ]
    assert len(default_prompts([TEAPOT])) == 4 and not any("wearing" in p for p in default_prompts([TEAPOT]))
    assert "a <new1> dog next to a <new2> teapot" in default_prompts([DOG, TEAPOT])
    assert "a <new1> stuffed dog wearing headphones" in default_prompts([TinyConcept(class_word="stuffed dog")])
    with pytest.raises(UserError, match="prompt"):
        default_prompts([])


def test_prompts_of_the_configuration_win_and_tokens_are_written_out(tmp_path):
    assert chosen_prompts(Config(prompt="a new1 dog"), [DOG]) == ["a <new1> dog"]
    assert chosen_prompts(Config(prompts=["new1", "a <new1> cat", "renew1"]), [DOG]) == [
        "<new1>",
        "a <new1> cat",
        "renew1",
    ]
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeff# mine\na new1 dog, très chic\r\n\n  a dog  \n".encode())
    assert chosen_prompts(Config(prompt_file=str(file)), [DOG]) == ["a <new1> dog, très chic", "a dog"]
    with pytest.raises(UserError, match=r"<new3>.*<new1>"):
        chosen_prompts(Config(prompt="a <new3> dog"), [DOG])


@pytest.mark.parametrize(
    ("content", "words"), [(None, "can't be read"), (b"\n# only\n", "no prompt"), (b"\xff\xfe\x00", "UTF-8")]
)
def test_bad_prompt_files(tmp_path, content, words):
    file = tmp_path / "prompts.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=words):
        read_prompts(file)
    with pytest.raises(UserError, match="can't be read"):
        read_prompts(tmp_path)
