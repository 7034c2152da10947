"""Toyland: a procedural world of toys, with exact masks, captions and attributes for every picture."""

from train.toyland.captions import Caption, describe, vocabulary
from train.toyland.render import Rendered, render, render_variants
from train.toyland.scene import Placement, ToyScene
from train.toyland.subjects import ToySubject, is_heldout
from train.toyland.world import World, attributes, fill_frame, sample_scene, sample_subject

__all__ = [
    "Caption",
    "Placement",
    "Rendered",
    "ToyScene",
    "ToySubject",
    "World",
    "attributes",
    "describe",
    "fill_frame",
    "is_heldout",
    "render",
    "render_variants",
    "sample_scene",
    "sample_subject",
    "vocabulary",
]
