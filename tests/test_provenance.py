"""What made a result."""

from __future__ import annotations

import subprocess

from cdiff import provenance


def test_the_commit_is_that_of_this_code_and_of_no_other(tmp_path, monkeypatch):
    def git(*words):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        done = subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    package = tmp_path / "lib" / "cdiff"
    package.mkdir(parents=True)
    for name in ("__init__.py", "provenance.py"):
        (package / name).write_text("", encoding="utf-8")
    monkeypatch.setattr(provenance, "__file__", str(package / "provenance.py"))
    assert provenance.git_commit() is None  # no checkout
    git("init", "-q")
    assert provenance.git_commit() is None  # installed inside somebody else's checkout
    git("add", ".")
    git("commit", "-qm", "x")
    assert provenance.git_commit() == git("rev-parse", "HEAD")
    (package / "provenance.py").write_text("changed", encoding="utf-8")
    assert provenance.git_commit() == git("rev-parse", "HEAD") + "-dirty"
