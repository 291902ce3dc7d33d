"""Evaluation: what is drawn (protocol), scored image by image (rows), averaged (summary), set side by side (compare).

    cases = read_cases(cfg.protocol, subjects)             # prompts, with the concepts each of them shows
    jobs = draw_missing(...)                               # images on disk, those already there are kept
    score_jobs(jobs, rows_file, scorers, references)       # streamed to rows.csv; goes on where it stopped
    summarise(rows_file, metrics, ...)                     # means per prompt, concept and overall, with intervals

`cdiff.tasks.evaluate` puts these in order; docs/metrics.md documents the files they write.
"""
