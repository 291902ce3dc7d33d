"""Clips of a tuned concept, by AnimateDiff (arXiv 2307.04725) with no further training.

    folder = find_motion(cfg.video)                         # the motion adapter: shipped, a folder, or from the hub
    check_fit(folder, cfg.model, cfg.video)                 # before anything heavy is read
    base, motion = animated(base, load_motion(...))         # the UNet, tuned weights and all, with motion modules in it
    for request, frames in draw_clips(base, motion, requests, cfg.video, cfg.sampler): ...
    ClipWriter(folder, ...).add(request, frames)            # GIF, MP4, frames, prompts.json, a contact sheet

`cdiff.tasks.video` puts these in order; `cdiff.evaluation.clips` scores the frames.
"""
