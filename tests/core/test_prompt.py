"""prompt: every accepted form finds its place; S* is never cut; the words and tokens agree."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from customcontrast.conditioning.prompt import guess_noun, parse_prompt, tokenize
from tests.support.tiny_models import LENGTH, make_tokenizer

TOKENIZER = make_tokenizer()


@pytest.mark.parametrize(
    ("prompt", "nouns", "read"),
    [
        ("a <bear> on the beach", ["bear"], "a bear S* on the beach"),
        ("a bear S* on the beach", ["bear"], "a bear S* on the beach"),
        ("a bear s* on the beach", ["bear"], "a bear S* on the beach"),
        ("a <bear> S* on the beach", ["bear"], "a bear S* on the beach"),
        ("a bear on the beach", ["bear"], "a bear S* on the beach"),
        ("two Bears, on the beach", ["bear"], "two Bears S* , on the beach"),
        ("a teddy  bear in red", ["teddy bear"], "a teddy bear S* in red"),
        ("a bear S1* and a cat S2*", ["bear", "cat"], "a bear S1* and a cat S2*"),
        ("a cat S2* and a bear S1*", ["bear", "cat"], "a cat S2* and a bear S1*"),
        ("a bear and a cat", ["bear", "cat"], "a bear S1* and a cat S2*"),
        ("a cat and a cat", ["cat", "cat"], "a cat S1* and a cat S2*"),
        ("a <cat> and a <bear>", ["bear", "cat"], "a cat S2* and a bear S1*"),
        ("a <dog> runs", ["bear"], "a dog S* runs"),
        ("a S* on the beach", ["bear"], "a bear S* on the beach"),
        ("S* on the beach", ["owl"], "an owl S* on the beach"),
        ("a photo of S*", ["bear"], "a photo of a bear S*"),
        ("", ["bear"], "a bear S*"),
        ("", ["owl", "bear"], "an owl S1* and a bear S2*"),
        ("on the beach", ["bear"], "a bear S* on the beach"),
        ("wearing a hat", ["bear"], "a bear S* wearing a hat"),
        ("watercolour", ["bear"], "a bear S*, watercolour".replace("S*,", "S* ,")),
        ("a forbear walks", ["bear"], "a bear S* , a forbear walks"),
        ("a <bear> S* on", [], "a bear on"),
    ],
)
def test_forms(prompt: str, nouns: list[str], read: str) -> None:
    assert parse_prompt(prompt, nouns).text == read


@pytest.mark.parametrize(
    ("prompt", "noun"),
    [
        ("a <teddy bear> on a chair", "teddy bear"),
        ("a photo of a bear S* in a city", "bear"),
        ("a red cat on the beach", "cat"),
        ("A watercolor painting of a small robot, wearing a hat", "robot"),
        ("my dog sitting in the snow", "dog"),
        ("the knight", "knight"),
    ],
)
def test_the_noun_can_be_guessed(prompt: str, noun: str) -> None:
    assert guess_noun(prompt) == noun


@pytest.mark.parametrize("prompt", ["", "on a", "watercolor", "a photo"])
def test_no_noun_gets_a_sentence(prompt: str) -> None:
    with pytest.raises(ValueError, match="mark its word"):
        guess_noun(prompt)


def test_notes_say_what_was_changed() -> None:
    assert parse_prompt("a bear", ["bear"]).notes == ()
    assert parse_prompt("", ["bear"]).notes == ()
    assert "'bear'" in parse_prompt("on the beach", ["bear"]).notes[0]
    assert "S3*" in parse_prompt("a bear S3*", ["bear"]).notes[0]
    assert "<cat>" in parse_prompt("a <bear> and a <cat>", ["bear"]).notes[0]


def test_special_tokens_are_plain_nothing() -> None:
    assert parse_prompt("a <|endoftext|> bear \ue000", ["bear"]).text == "a bear S*"


def test_ids_are_those_of_the_tokenizer_without_subjects() -> None:
    prompt = "A photo of the BEAR, on a beach! ü 日 it's 3d"
    ids = tokenize([TOKENIZER], parse_prompt(prompt), 3).ids[0]
    assert ids.tolist() == TOKENIZER(prompt, padding="max_length", max_length=LENGTH, truncation=True)["input_ids"]


def test_fillers_lie_where_positions_say() -> None:
    prompt = tokenize([TOKENIZER], parse_prompt("a bear S1* and a cat S2*", ["bear", "cat"]), 3, 2)
    assert prompt.positions.tolist() == [[3, 4, 5], [9, 10, 11]]
    assert [prompt.tokens[i] for i in (0, 2, 3, 5, 9, prompt.end)] == ["<start>", "bear", "S1*", "S1*", "S2*", "<end>"]
    assert prompt.ids[0][prompt.end] == TOKENIZER.eos_token_id
    assert dict(prompt.words)["S2*"] == (9, 10, 11)
    assert prompt.position_rows.nonzero().tolist() == [[0, 3], [0, 4], [0, 5], [1, 9], [1, 10], [1, 11]]


def test_absent_positions_leave_no_mark() -> None:
    prompt = tokenize([TOKENIZER], parse_prompt("a bear"), 3, num_subjects=1)
    assert prompt.positions.tolist() == [[-1, -1, -1]]
    assert prompt.position_rows.sum() == 0


def test_cutting_spares_s_star_and_its_noun() -> None:
    long = "red " * 40
    prompt = tokenize([TOKENIZER], parse_prompt(f"{long} bear S* on the {long}", ["bear"]), 4, 1)
    assert len(prompt.tokens) == LENGTH
    assert prompt.tokens.count("S*") == 4 and "bear S*" in prompt.text
    assert prompt.truncated.startswith("red red") and prompt.truncated.endswith("red")
    assert len(prompt.text.split()) + len(prompt.truncated.split()) == 84


def test_two_thousand_words_are_cut() -> None:
    prompt = tokenize([TOKENIZER], parse_prompt("a bear " + "word " * 2000, ["bear"]), 4, 1)
    assert len(prompt.ids[0]) == LENGTH and prompt.truncated


def test_too_many_placeholders_get_a_sentence() -> None:
    with pytest.raises(ValueError, match="subjects alone take"):
        tokenize([TOKENIZER], parse_prompt("", ["bear"] * 4), 12, 4)


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=60), st.integers(1, 3))
def test_any_text_keeps_every_subject(text: str, count: int) -> None:
    prompt = tokenize([TOKENIZER], parse_prompt(text, ["bear", "cat", "bear"][:count]), 2, count)
    assert (prompt.positions > 0).all()
    assert len(prompt.ids[0]) == LENGTH
    for k, places in enumerate(prompt.positions.tolist()):
        label = "S*" if count == 1 else f"S{k + 1}*"
        assert [prompt.tokens[i] for i in places] == [label] * 2
    covered = sorted(i for _, places in prompt.words for i in places)
    assert covered == list(range(1, prompt.end))


@pytest.mark.parametrize(
    ("prompt", "nouns", "read", "notes"),
    [
        ("a bear on the beach <lora:pixel:0.8>", ["bear"], "a bear S* on the beach", 1),
        ("<lora:pixel:0.8> a <bear> on the beach", ["bear"], "a bear S* on the beach", 1),
        ("<b>a bear</b> on the beach", ["bear"], "a bear S* on the beach", 2),
        ("a bear, 3 < 5 and 7 > 2", ["bear"], "a bear S* , 3 5 and 7 2", 1),
        ("a <thing> on the beach", ["bear"], "a thing S* on the beach", 1),
        ("a <bear> on the beach", ["teddy bear"], "a bear S* on the beach", 0),
        ("a <red bear> on the beach", ["bear"], "a red bear S* on the beach", 0),
        (
            "a teddy bear and a bear on the beach",
            ["bear", "teddy bear"],
            "a teddy bear S2* and a bear S1* on the beach",
            0,
        ),
        ("a bear-shaped vase and a bear", ["bear"], "a bear-shaped vase and a bear S*", 0),
        ("a teddy-bear and a bear", ["bear"], "a teddy-bear and a bear S*", 0),
        ("a cafe\u0301 sign", ["caf\u00e9 sign"], "a caf\u00e9 sign S*", 0),
    ],
)
def test_marks_tags_and_nouns_inside_others(prompt: str, nouns: list[str], read: str, notes: int) -> None:
    parsed = parse_prompt(prompt, nouns)
    assert parsed.text == read and len(parsed.notes) == notes, parsed.notes


def test_a_tag_is_no_subject_in_a_caption_either() -> None:
    assert guess_noun("<lora:pixel:0.8> a photo of a cat on the sofa") == "cat"
    assert parse_prompt("a cat <lora:x:1>").text == "a cat"
