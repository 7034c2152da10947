"""passes: several subjects, each in a pass of its own, held against the same sums written out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from customcontrast.conditioning.conditioner import VisualConditioner
from customcontrast.conditioning.prompt import parse_prompt, words_of_each
from customcontrast.config import GenerationConfig, LocationConfig, RecordConfig, ResolvedConfig
from customcontrast.denoiser import JointDenoiser, NoisyLatents
from customcontrast.multi_subject import INWARD, SeparateDenoiser, make_denoiser
from customcontrast.pipeline import CustomContrast, Subject
from customcontrast.run_settings import resolve
from customcontrast.sampling import make_scheduler

APART = LocationConfig(apart=True)
PROMPT = "a bear and a cat on the beach"
SIZE = {"width": 96, "height": 64}
SOME = "a the cat dog and with wearing red hat , . in snow S1* S2* <cat> next".split()
FAST = {"num_inference_steps": 3, **SIZE}


@pytest.fixture(scope="session")
def pair(bear: Subject, cat: Subject) -> list[Subject]:
    return [bear, cat]


def passes_of(
    custom: CustomContrast, subjects: list[Subject], prompt: str = PROMPT
) -> tuple[SeparateDenoiser, ResolvedConfig]:
    config = resolve(custom.base, GenerationConfig(prompt, subject_scale=0.9, location=APART, **FAST), subjects)
    f = custom.base.scale_factor
    size = (config.height // f, config.width // f)
    return make_denoiser(custom.base, custom.conditioner, config, subjects, (), torch.tensor([900, 500]), size), config


# ---- whose words ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "nouns", "wanted"),
    [
        (
            "a cat wearing a red hat and a dog in the snow",
            ["cat", "dog"],
            ["a cat S* wearing a red hat in the snow", "a dog S* in the snow"],
        ),
        (
            "a cat and a dog wearing a hat in the snow",
            ["cat", "dog"],
            ["a cat S* in the snow", "a dog S* wearing a hat in the snow"],
        ),
        ("a dog S2* next to a fluffy cat S1*", ["cat", "dog"], ["a fluffy cat S*", "a dog S*"]),
        (
            "a photo of a rabbit, a teddy bear and a cat in the city, watercolor style",
            ["rabbit", "teddy bear", "cat"],
            [f"a photo of a {noun} S* in the city, watercolor style" for noun in ("rabbit", "teddy bear", "cat")],
        ),
        (
            "a cat in the snow with a dog",
            ["cat", "dog"],
            ["a cat S* in the snow", "in the snow a dog S*"],
        ),
        ("cat dog", ["cat", "dog"], ["cat S*", "dog S*"]),
        ("on the beach", ["cat", "dog"], ["a cat S* on the beach", "a dog S* on the beach"]),
    ],
)
def test_each_subject_has_a_prompt_that_speaks_of_it_alone(prompt: str, nouns: list[str], wanted: list[str]) -> None:
    found = [own.text.replace(" ,", ",") for own, _ in words_of_each(parse_prompt(prompt, nouns))]
    assert found == wanted


@given(
    words=st.lists(st.sampled_from(SOME), max_size=14),
    swap=st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_every_word_is_of_all_of_one_or_of_nobody(words: list[str], swap: bool) -> None:
    parsed = parse_prompt(" ".join(words), ["dog", "cat"] if swap else ["cat", "dog"])
    each = words_of_each(parsed)
    for k, (own, kept) in enumerate(each):
        assert kept == sorted(kept) and len(kept) == len(own.words)
        assert [word.subject for word in own.words if word.subject is not None] == [0]
        mine = next(i for i, word in enumerate(parsed.words) if word.subject == k)
        assert mine in kept
        assert all(parsed.words[i].text == word.text for i, word in zip(kept, own.words, strict=True) if i != mine)
    links = set(range(len(parsed.words))) - set(each[0][1]) - set(each[1][1])
    assert all(parsed.words[i].text.lower().rstrip(",.") in ("and", "with", "next", "") for i in links)


# ---- whose place ------------------------------------------------------------------------------------


def test_a_row_of_subjects_stands_in_the_order_of_the_prompt(any_custom: CustomContrast, pair: list[Subject]) -> None:
    passes, _ = passes_of(any_custom, pair, "a cat and a bear on the beach")
    width = passes.prior.shape[-1]
    bear, cat = passes.prior
    assert cat[:, : width // 2].all() and bear[:, width // 2 :].all() and torch.equal(bear + cat, torch.ones_like(cat))
    assert passes.shifts[0] == -passes.shifts[1] < 0
    assert abs(passes.shifts[1] - INWARD * width / 4) <= 1
    visual = CustomContrast.from_parts(any_custom.base, any_custom.adapter)
    visual.conditioner = VisualConditioner(visual.base, visual.adapter)
    same, _ = passes_of(visual, pair, "a cat and a bear on the beach")
    assert torch.equal(same.prior, passes.prior), "without S* in the text it is the same row"


def test_a_drawn_box_is_a_subjects_place(any_custom: CustomContrast, pair: list[Subject]) -> None:
    drawn = [pair[0], pair[1].placed(box=(0, 0.2, 0.4, 1))]
    passes, _ = passes_of(any_custom, drawn)
    width = passes.prior.shape[-1]
    assert passes.shifts[1] == pytest.approx(0.3 * width, abs=1)
    assert passes.prior[0, :, width // 2 :].all() and not passes.prior[0, :, : width // 2].any(), (
        "the other half is left"
    )


def test_a_place_belongs_to_the_mask_and_else_to_the_part(any_custom: CustomContrast, pair: list[Subject]) -> None:
    passes, _ = passes_of(any_custom, pair)
    K, h, w = passes.prior.shape
    alone = passes.weights(None, 2)
    assert alone.shape == (2, K, h, w)
    assert torch.allclose(alone.sum(1), torch.ones(2, h, w))
    assert (alone[0] - passes.prior).abs().max() < 1e-3
    masks = torch.zeros(1, K, h, w)
    masks[0, 0] = 1.0  # the bear is everywhere, the cat nowhere
    assert (passes.weights(masks, 1)[0, 0] > 0.98).all()
    masks[0, 1] = 1.0  # both everywhere: each in its part
    assert torch.allclose(passes.weights(masks, 1), alone[:1], atol=1e-3)
    assert torch.equal(passes.owned(masks), masks * passes.weights(masks, 1))


# ---- the mixture ------------------------------------------------------------------------------------


def test_the_prediction_is_the_sum_written_out(any_custom: CustomContrast, pair: list[Subject]) -> None:
    """Σ_k W_k · back(ε_k(moved(z))), every pass on its own, and with its own share of the masks."""
    passes, _ = passes_of(any_custom, pair)
    scheduler = make_scheduler(any_custom.base.scheduler, None)
    scheduler.set_timesteps(10)
    h, w = passes.prior.shape[-2:]
    g = torch.Generator().manual_seed(0)
    z = torch.randn(2, any_custom.base.unet.config.in_channels, h, w, generator=g)
    masks = torch.rand(2, 2, h, w, generator=g)
    t = torch.tensor(500)
    with torch.no_grad():
        found, maps = passes.predict(NoisyLatents(scheduler, z, t, None, masks, (True, True)))
        assert maps is None
        W = passes.weights(masks, 2)
        expected = torch.zeros_like(z)
        for k, one in enumerate(passes.passes):
            assert isinstance(one, JointDenoiser) and [len(of.outputs) for of in one.conditions] == [1]
            fresh = replace(one, projected={})
            dx = passes.shifts[k]
            own = torch.roll((masks * W)[:, k : k + 1], dx, -1)
            moved, _ = fresh.predict(NoisyLatents(scheduler, torch.roll(z, dx, -1), t, None, own, (True,)))
            expected += W[:, k : k + 1] * torch.roll(moved, -dx, -1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_one_subject_is_the_same_to_the_bit(any_custom: CustomContrast, pair: list[Subject]) -> None:
    a = any_custom.generate("a bear on the beach", pair[0], location=APART, **FAST)
    b = any_custom.generate("a bear on the beach", pair[0], **FAST)
    assert np.array_equal(np.asarray(a.images[0]), np.asarray(b.images[0]))
    assert np.array_equal(a.location_masks, b.location_masks) and np.array_equal(a.text_maps, b.text_maps)


def test_maps_of_the_passes_read_as_those_of_one_picture(any_custom: CustomContrast, pair: list[Subject]) -> None:
    record = RecordConfig(looked_at=True)
    both = {"num_images": 2, "record": record, **FAST}
    r, together = (any_custom.generate(PROMPT, pair, location=x, **both) for x in (APART, None))
    assert r.tokens == together.tokens and r.words == together.words and r.prompt == together.prompt
    for name in ("location_masks", "text_maps", "visual_maps", "subject_maps"):
        assert getattr(r, name).shape == getattr(together, name).shape, name
        assert np.isfinite(getattr(r, name)).all(), name
    sizes = {size: {kind: x.shape for kind, x in kinds.items()} for size, kinds in r.by_resolution.items()}
    assert sizes == {s: {kind: x.shape for kind, x in kinds.items()} for s, kinds in together.by_resolution.items()}
    assert [x.shape for x in r.looked_at] == [x.shape for x in together.looked_at]
    for k in range(2):  # everything a place looked at sums to its visual map, moved back with it
        assert np.allclose(r.looked_at[k].sum((-3, -2, -1)), r.visual_maps[:, :, k].mean(1), atol=2e-2)
    places = dict(r.words)
    link, shared = places["and"], places["beach"]
    assert not r.text_maps[:, :, link].any(), "no pass reads “and”"
    assert (r.text_maps[:, :, shared] > 0).all()
    for k, name in enumerate(("S1*", "S2*")):
        own = r.text_maps[:, :, places[name]].sum(2, dtype=np.float32)
        assert np.allclose(own, r.subject_maps[:, :, k], atol=1e-2)
    assert r.location_masks.sum(2).max() <= 1 + 1e-4, "what is shown is each subject's own place"
    assert r.recipe["location"]["apart"] is True


def test_maps_move_with_their_pass(any_custom: CustomContrast, pair: list[Subject]) -> None:
    """Before masks act, the visual map of subject k is that of its pass alone on the moved noise, moved back."""
    passes, _ = passes_of(any_custom, pair)
    r = any_custom.generate(PROMPT, pair, location=APART, guidance_scale=4.0, **FAST)
    scale = any_custom.base.scale_factor
    noise = torch.randn(1, any_custom.base.unet.config.in_channels, SIZE["height"] // scale, SIZE["width"] // scale,
                        generator=torch.Generator().manual_seed(0))  # fmt: skip
    for k, (subject, dx) in enumerate(zip(pair, passes.shifts, strict=True)):
        own, _ = words_of_each(parse_prompt(PROMPT, ["bear", "cat"]))[k]
        alone = any_custom.generate(own.text, subject, latents=noise.roll(dx, -1), guidance_scale=4.0, **FAST)
        columns = round(dx * alone.visual_maps.shape[-1] / noise.shape[-1])
        moved = np.roll(alone.visual_maps[0, 0, 0], -columns, -1)
        assert np.allclose(r.visual_maps[0, 0, k], moved, atol=2e-3)


@pytest.mark.parametrize("changed", [{"guidance_scale": 1.0}, {"scheduler": "heun"}, {"scheduler": "euler"},
                                     {"location": LocationConfig(apart=True, enabled=False)},
                                     {"record": RecordConfig(maps=False)},
                                     {"record": RecordConfig(tokens=("beach",), steps=(2,), layers=(1,))},
                                     {"num_images": 2, "preview_every": 1}])  # fmt: skip
def test_with_every_other_setting(any_custom: CustomContrast, pair: list[Subject], changed: dict) -> None:
    settings = {"location": APART, "seed": 4, **FAST} | changed
    a, b = (any_custom.generate(PROMPT, pair, **settings) for _ in range(2))
    assert np.array_equal(np.asarray(a.images[0]), np.asarray(b.images[0]))
    assert np.asarray(a.images[0]).std() > 0


def test_a_subject_nearby_does_not_reach_the_other(any_custom: CustomContrast, pair: list[Subject], cutout) -> None:
    """Step 1, one call: another second subject changes the first one's half. In passes of their own it does not."""
    other = any_custom.subject(cutout(9), "cat")
    kept: list[torch.Tensor] = []

    def first(step: int, t: torch.Tensor, z: torch.Tensor) -> tuple[torch.Tensor, bool]:
        kept.append(z.clone())
        return z, False

    for location in (APART, LocationConfig()):
        for second in (pair[1], other):
            any_custom.generate(PROMPT, [pair[0], second], location=location, on_step=first, **FAST)
    half = kept[0].shape[-1] // 2
    apart, together = ((a[..., : half - 1] - b[..., : half - 1]).abs().max() for a, b in (kept[:2], kept[2:]))
    assert apart < 0.02 * together


def test_the_visual_branch_alone(any_custom: CustomContrast, pair: list[Subject]) -> None:
    custom = CustomContrast.from_parts(any_custom.base, any_custom.adapter)
    custom.conditioner = VisualConditioner(custom.base, custom.adapter)
    r = custom.generate(PROMPT, pair, location=APART, **FAST)
    assert not any("*" in token for token in r.tokens)
    assert r.visual_maps.shape[2] == 2 and np.asarray(r.images[0]).std() > 0


def test_a_wrong_switch_gets_a_sentence() -> None:
    with pytest.raises(ValueError, match="apart"):
        LocationConfig(apart="yes")
