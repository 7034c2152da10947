"""Eq. 3 in every cross-attention layer, the maps it leaves, and the masks made of them."""

from customcontrast.attention.layers import (
    LayerSpec,
    SubjectAttention,
    cross_attention_layers,
    install,
    install_processors,
    slice_attention,
)
from customcontrast.attention.location import Masker, location_mask
from customcontrast.attention.maps import MapRecorder, aggregate
from customcontrast.attention.processor import SubjectProcessor
from customcontrast.attention.state import SubjectBranch, SubjectState, unet_forward

__all__ = [
    "LayerSpec",
    "MapRecorder",
    "Masker",
    "SubjectAttention",
    "SubjectBranch",
    "SubjectProcessor",
    "SubjectState",
    "aggregate",
    "cross_attention_layers",
    "install",
    "install_processors",
    "location_mask",
    "slice_attention",
    "unet_forward",
]
