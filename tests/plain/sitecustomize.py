"""A process started with this folder in PYTHONPATH sees the README's installation: the extras of the tests are hidden.

So it is what most users run, and it starts 2 to 3 s sooner: diffusers imports peft and scipy wherever they are.
"""

from importlib.machinery import PathFinder

HIDDEN = ("peft", "scipy")
find_spec = PathFinder.find_spec


def find_plain(name, path=None, target=None):
    return None if name in HIDDEN else find_spec(name, path, target)


PathFinder.find_spec = find_plain
