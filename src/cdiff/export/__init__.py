"""A finished run in other tools' formats: a pipeline, a LoRA, kohya's names, the release's files, a hub folder."""
