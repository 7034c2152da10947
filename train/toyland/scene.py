"""One picture of Toyland before it is rendered: who stands where, in which place, light and style."""

from __future__ import annotations

from dataclasses import dataclass

from train.toyland.subjects import (
    ToySubject,
)


@dataclass(frozen=True)
class Placement:
    """One subject as it appears in one picture."""

    subject: ToySubject
    shape: str = "normal"  # one of bodies.SHAPES
    accessory: str = "none"  # one of accessories.ACCESSORIES
    accessory_color: str = "red"  # key of COLORS; without meaning when accessory is "none"
    azimuth: float = 0.0  # degrees, 0 = facing the camera, -180..180
    pose: str = "standing"  # one of bodies.POSES
    x: float = 0.0  # position, in half picture heights, 0 = middle
    z: float = 0.0  # nearness, -0.5..0.5; positive = nearer = lower in the picture
    scale: float = 1.0  # 1 = half the picture's height


@dataclass(frozen=True)
class ToyScene:
    """Everything a picture is made of; equal scenes render to equal pictures."""

    placements: tuple[Placement, ...]  # one or two
    background: str = "studio"  # key of scenes.BACKGROUNDS
    style: str = "photo"  # key of styles.STYLES
    light: tuple[float, float] = (-35.0, 50.0)  # direction the light comes from: azimuth, elevation (degrees)
    elevation: float = 15.0  # camera elevation, degrees, 3..40
    seed: int = 0  # clouds, stars, trees, paper grain
