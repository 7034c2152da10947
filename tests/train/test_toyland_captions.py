"""Captions: attributes bound to their subject, spans of the nouns, the vocabulary."""

import random
import re
from dataclasses import replace

import pytest

from train.toyland import Placement, ToyScene, ToySubject, World, describe, sample_scene, vocabulary
from train.toyland.words import ACCESSORIES, BACKGROUNDS, COLOR_WORDS, JOIN, NOUNS, PATTERNS, SHAPES, STYLES

_BETWEEN = re.compile("(?:" + "|".join(re.escape(j.rstrip()) for j in set(JOIN)) + r") (?=an? )")
_PATTERN = {"plain": (" and ", "details"), "striped": ("strip",), "spotted": ("spot",), "patched": ("patch",)}


def _scenes(count: int, seed: int = 0) -> list[ToyScene]:
    rng = random.Random(seed)
    return [sample_scene(rng, replace(World.full(), p_two=0.5)) for _ in range(count)]


def _phrases(caption: object, scene: ToyScene) -> list[str]:
    """The caption cut into one piece per placement, the place taken out."""
    text = caption.text
    for place in sorted(BACKGROUNDS[scene.background], key=len, reverse=True):
        text = re.sub(rf"^{re.escape(place)}, |(?<= ){re.escape(place)}", lambda m: "~" * len(m[0]), text)
    if len(scene.placements) == 1:
        return [text]
    cut = [m for m in _BETWEEN.finditer(text) if m.end() < caption.nouns[1][0]][-1]
    return [text[: cut.start()], text[cut.end() :]]


def _has(phrase: str, words: tuple[str, ...]) -> bool:
    return any(re.search(rf"\b{re.escape(w)}\b", phrase) for w in words)


def test_full_captions_bind_every_attribute() -> None:
    rng = random.Random(5)
    for scene in _scenes(400):
        for wording in (None, rng):
            caption = describe(scene, wording)
            assert _has(caption.text, BACKGROUNDS[scene.background])
            assert scene.style == "photo" or any(
                b in caption.text and caption.text.endswith(a) for b, a in STYLES[scene.style]
            )
            for phrase, p in zip(_phrases(caption, scene), scene.placements, strict=True):
                assert _has(phrase, COLOR_WORDS[p.subject.color_1]), (phrase, p)
                assert _has(phrase, COLOR_WORDS[p.subject.color_2]), (phrase, p)
                assert any(w in phrase for w in _PATTERN[p.subject.pattern]), (phrase, p)
                assert p.shape == "normal" or _has(phrase, SHAPES[p.shape])
                if p.accessory != "none":
                    assert _has(phrase, ACCESSORIES[p.accessory]) and _has(phrase, COLOR_WORDS[p.accessory_color])


def test_noun_captions_hide_what_is_the_subjects_own() -> None:
    rng = random.Random(6)
    for scene in _scenes(300, 1):
        caption = describe(scene, rng, "noun")
        for phrase, p in zip(_phrases(caption, scene), scene.placements, strict=True):
            worn = COLOR_WORDS[p.accessory_color] if p.accessory != "none" else ()
            for color in (p.subject.color_1, p.subject.color_2):
                assert not _has(phrase, tuple(w for w in COLOR_WORDS[color] if w not in worn)), (phrase, p)
            assert not re.search(r"\b(striped?|stripes|spotted|spots|patched|patches|details)\b", phrase)
            assert p.shape == "normal" or _has(phrase, SHAPES[p.shape])
            assert p.accessory == "none" or _has(phrase, ACCESSORIES[p.accessory])


def test_noun_spans_mark_the_class_noun() -> None:
    rng = random.Random(7)
    for scene in _scenes(200, 2):
        for words in ("full", "noun"):
            caption = describe(scene, rng, words)
            assert len(caption.nouns) == len(scene.placements)
            for (start, end), p in zip(caption.nouns, scene.placements, strict=True):
                assert caption.text[start:end] in NOUNS[p.subject.species]
            assert "\x01" not in caption.text and "\x02" not in caption.text and "  " not in caption.text


def test_canonical_wording() -> None:
    bear = Placement(ToySubject("bear", "orange", "blue", "striped"), "normal", "hat", "red")
    scene = ToyScene((bear,), "jungle", "watercolor")
    full, noun = describe(scene), describe(scene, subject_words="noun")
    assert full.text == "a striped orange and blue bear wearing a red hat in the jungle, watercolor style"
    assert noun.text == "a bear wearing a red hat in the jungle, watercolor style"
    assert describe(scene) == full
    two = replace(scene, placements=(bear, replace(bear, subject=replace(bear.subject, species="elephant"))))
    assert "an elephant" in describe(two, subject_words="noun").text
    with pytest.raises(ValueError, match="subject_words"):
        describe(scene, subject_words="short")


def test_wordings_vary_and_stay_short() -> None:
    rng = random.Random(8)
    scenes = _scenes(300, 3)
    assert max(len(describe(s, rng).text.split()) for s in scenes) <= 38
    assert sum(len(describe(s, rng).text.split()) for s in scenes) / len(scenes) < 24
    assert len({describe(scenes[0], rng).text for _ in range(60)}) > 25
    assert describe(scenes[0], random.Random(1)) == describe(scenes[0], random.Random(1))


def test_vocabulary_holds_every_word() -> None:
    rng, words = random.Random(9), vocabulary()
    for scene in _scenes(500, 4):
        said = re.findall(r"[a-z0-9]+", describe(scene, rng).text.lower())
        assert set(said) <= words
    assert {"bear", "bunny", "violet", "watercolor", "sunglasses"} <= words
    assert not any("{" in w for w in words)


def test_every_attribute_value_has_words() -> None:
    world = World.full()
    for values, table in (
        (world.species, NOUNS), (world.backgrounds, BACKGROUNDS), (world.styles, STYLES),
        (world.shapes, SHAPES),
        (world.accessories[1:], ACCESSORIES), (world.colors, COLOR_WORDS), (world.patterns, PATTERNS),
    ):  # fmt: skip
        assert set(values) == set(table)
    nouns = [n for options in NOUNS.values() for n in options]
    assert len(nouns) == len(set(nouns)), "one noun, one species"
