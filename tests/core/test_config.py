"""config: what is refused, and that settings survive JSON."""

from __future__ import annotations

import json

import pytest

from customcontrast.config import EncoderConfig, LocationConfig, RecordConfig

FACTS = {"image_width": 24, "image_layers": (6, 4, 2), "text_widths": (32, 40), "num_layers": 7}


def test_encoder_config_survives_json() -> None:
    config = EncoderConfig(**FACTS, width=32, heads=4, text_scales=(0.1, 0.2), sink=False)
    assert EncoderConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_from_dict_names_the_unknown_field() -> None:
    with pytest.raises(ValueError, match="no field colour"):
        EncoderConfig.from_dict(FACTS | {"colour": 1})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"width": 30, "heads": 4}, "multiple of heads=4"),
        ({"textual": False}, "tv_fusion=False"),
        ({"num_layers": 0}, "at least one"),
        ({"text_scales": (0.1,)}, "one entry for each"),
    ],
)
def test_encoder_config_refuses(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        EncoderConfig(**(FACTS | changes))


def test_tokens_of_the_ablations() -> None:
    full = EncoderConfig(**FACTS)
    assert (full.visual_tokens, full.placeholder_tokens) == (full.text_queries, full.text_queries)
    no_fusion = EncoderConfig(**FACTS, tv_fusion=False)
    assert (no_fusion.visual_tokens, no_fusion.placeholder_tokens) == (full.visual_queries, full.text_queries)
    visual_only = EncoderConfig(**FACTS, tv_fusion=False, textual=False)
    assert (visual_only.visual_tokens, visual_only.placeholder_tokens) == (full.visual_queries, 0)


def test_record_keeps_the_steps_asked_for() -> None:
    assert [RecordConfig(steps=(1, 3)).keeps(step) for step in (1, 2, 3)] == [True, False, True]
    assert RecordConfig().keeps(99) and not RecordConfig(maps=False).keeps(1)


@pytest.mark.parametrize("changes", [{"threshold": 1.0}, {"start_step": 1}, {"freeze_step": 0}])
def test_location_config_refuses(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        LocationConfig(**changes)
