"""Scene to pixels."""

from __future__ import annotations

from PIL import Image

from cdiff.pocket.world.accessories import draw_accessory
from cdiff.pocket.world.animals import draw_animal
from cdiff.pocket.world.canvas import Canvas
from cdiff.pocket.world.objects import draw_object
from cdiff.pocket.world.scenes import background
from cdiff.pocket.world.spec import LIVE_KINDS, Scene


def render(scene: Scene, resolution: int = 128) -> Image.Image:
    """The picture of a scene, RGB. The same scene always gives the same pixels."""
    canvas = Canvas(background(scene.background, scene.background_seed, resolution))
    for subject in scene.subjects:
        frame = canvas.frame(subject.x, subject.y - subject.lift, subject.size, subject.flip)
        frame.ground = -subject.lift / subject.size
        if subject.identity.kind in LIVE_KINDS:
            anchors = draw_animal(frame, subject)
            if subject.accessory:
                draw_accessory(subject.accessory, anchors)
        else:
            draw_object(frame, subject)
    return canvas.finish()
