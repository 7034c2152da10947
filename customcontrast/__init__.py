"""CustomContrast: a picture of your subject and a prompt in, new pictures of it out.

    from customcontrast import CustomContrast, Segmenter
    model = CustomContrast.load("toyland")
    subject = model.subject(Segmenter().auto("bear.png"), noun="bear")
    model.generate("a <bear> on the beach", [subject]).images[0]

Names are imported when first used, so that the light modules stay light.
"""

from __future__ import annotations

from importlib import import_module

_HOME = {
    "Adapter": "customcontrast.adapter",
    "CustomContrast": "customcontrast.pipeline",
    "CustomContrastPipeline": "customcontrast.integrations.diffusers_pipeline",
    "ConfigError": "customcontrast.errors",
    "IPAdapter": "customcontrast.ip_adapter",
    "EncoderConfig": "customcontrast.config",
    "GenerationConfig": "customcontrast.config",
    "MemoryPlan": "customcontrast.memory",
    "Layout": "customcontrast.layout",
    "LocationConfig": "customcontrast.config",
    "Placement": "customcontrast.placement",
    "RecordConfig": "customcontrast.config",
    "SafetyChecker": "customcontrast.safety",
    "Result": "customcontrast.output",
    "Segmentation": "customcontrast.segmentation",
    "Segmenter": "customcontrast.segmentation",
    "Step": "customcontrast.output",
    "Subject": "customcontrast.subject",
    "SubjectLayout": "customcontrast.layout",
    "UserError": "customcontrast.errors",
    "WholePicture": "customcontrast.subject",
    "fit_latent_rgb": "customcontrast.previews",
    "load_adapter": "customcontrast.adapter_files",
    "load_base": "customcontrast.base_model",
    "save_adapter": "customcontrast.adapter_files",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'customcontrast' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
