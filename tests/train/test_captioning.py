"""Captions of photographs by transformers' real BLIP, at toy width."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
    BlipTextConfig,
    BlipVisionConfig,
)

from train.data import prepare
from train.data.captioning import LENGTH, Captioner

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[DEC]", "a", "an", "photo", "of", "toy", "cat", "owl", "on", "sofa", "."]
END, SOFA = WORDS.index("[SEP]"), WORDS.index("sofa")


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BLIP as it lies on disk."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("blip")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    tokens = {"bos_token_id": 4, "eos_token_id": END, "sep_token_id": END, "pad_token_id": 0}
    text = BlipTextConfig(**sizes, **tokens, vocab_size=len(WORDS), encoder_hidden_size=16, max_position_embeddings=64)
    vision = BlipVisionConfig(**sizes, image_size=32, patch_size=16)
    BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=vision)).save_pretrained(folder)
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}, model_max_length=64)
    BlipProcessor(BlipImageProcessor(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)
    return folder


def pictures(count: int) -> list[Image.Image]:
    noise = np.random.default_rng(0).integers(0, 255, (count, 40, 64, 3), dtype=np.uint8)
    return [Image.fromarray(x) for x in noise]


def favouring(captioner: Captioner, *words: int) -> Captioner:
    """One whose model finds these words, in falling order, likelier than all others, whatever it sees."""
    head = captioner.model.text_decoder.cls.predictions
    with torch.no_grad():
        head.decoder.weight.zero_()
        head.decoder.bias.fill_(-40)
        for place, word in enumerate(words):
            head.decoder.bias[word] = 10.0 - place
    return captioner


def test_a_caption_goes_on_from_the_noun(blip: Path) -> None:
    captioner = Captioner.load(str(blip), "cpu")
    found = captioner.captions(pictures(3), "toy cat")
    assert all(text.startswith("a photo of a toy cat") and text[slice(*span)] == "toy cat" for text, span in found)
    assert captioner.captions(pictures(3), "toy cat") == found
    assert [captioner.captions([picture], "toy cat")[0] for picture in pictures(3)] == found
    said = favouring(captioner, SOFA).captions(pictures(1), "owl")
    assert said == [("a photo of an owl " + " ".join(["sofa"] * LENGTH), (14, 17))]
    assert favouring(captioner, END).captions(pictures(1), "owl") == [("a photo of an owl", (14, 17))]


def test_shards_are_captioned_but_for_what_has_a_caption(
    blip: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    place = tmp_path / "subjects" / "owl"
    (place / "masks").mkdir(parents=True)
    mask = np.zeros((40, 64), np.uint8)
    mask[8:30, 8:40] = 255
    for i, picture in enumerate(pictures(3)):
        picture.save(place / f"{i}.png")
        Image.fromarray(mask).save(place / "masks" / f"{i}.png")
    (place / "1.txt").write_text("an <owl> by the sea")
    favouring(Captioner.load(str(blip), "cpu"), END).model.save_pretrained(blip)
    arguments = ["prepare", "--source", "folder", "--min-side", "0", "--input", str(tmp_path / "subjects")]
    output = tmp_path / "out"
    assert prepare.main([*arguments, "--output", str(output), "--captions", str(blip)]) == 0
    [sample] = webdataset.WebDataset(str(output / "shard-00000.tar"), shardshuffle=False)
    captions = json.loads(sample["json"])["captions"]
    assert captions == [["a photo of an owl", [14, 17]], ["an owl by the sea", [3, 6]], ["a photo of an owl", [14, 17]]]
    assert prepare.main([*arguments, "--output", str(output)]) == 2  # worded otherwise: another folder
    assert "choose another folder" in capsys.readouterr().err
    assert prepare.main([*arguments, "--output", str(tmp_path / "b"), "--captions", "./no-such-blip"]) == 2
    assert "no-such-blip" in capsys.readouterr().err
