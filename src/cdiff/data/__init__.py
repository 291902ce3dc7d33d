"""Training pictures: reading them, augmenting them with masks, their captions, and their latents encoded ahead."""
