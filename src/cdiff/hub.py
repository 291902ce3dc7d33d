"""Which commit of a hub repository is fetched: never whatever its branch holds today without saying so."""

from __future__ import annotations

import logging
import re

log = logging.getLogger("cdiff")

COMMIT = re.compile(r"[0-9a-f]{40}")
PINS = {  # of the repositories that conf/ names, where their commit is known
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
    "guoyww/animatediff-motion-adapter-v1-5-2": "6167b88ffe39b4441fdf2113e77b99a6f56b7906",
    "openai/clip-vit-base-patch32": "3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268",
}


def pinned(repository: str, revision: str | None = None, kind: str = "model") -> str | None:
    """The commit to fetch: the one asked for or pinned here, else today's of the branch, told in the log.

    None where the hub can't be asked: then only a copy in the cache can serve.
    """
    revision = revision or PINS.get(repository)
    if revision is not None and COMMIT.fullmatch(revision):
        return revision
    import huggingface_hub

    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return revision
    asked = huggingface_hub.HfApi().repo_info(repository, repo_type=kind, revision=revision, timeout=20)
    log.info("%s is fetched at commit %s", repository, asked.sha)
    return asked.sha
