"""Grounded SAM's path, with transformers' real classes at toy width and random weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    BertTokenizer,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessor,
    GroundingDinoProcessor,
    SamConfig,
    SamImageProcessor,
    SamMaskDecoderConfig,
    SamModel,
    SamProcessor,
    SamPromptEncoderConfig,
    SamVisionConfig,
    SwinConfig,
)

from train.evaluation.grounded_sam import GroundedSAM

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "bear", ".", "?"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A detector and a SAM as they lie on disk."""
    torch.manual_seed(0)
    detector, sam = tmp_path_factory.mktemp("detector"), tmp_path_factory.mktemp("sam")
    backbone = SwinConfig(
        window_size=7,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 1, 1],
        image_size=64,
        out_features=["stage2", "stage3", "stage4"],
    )
    one_layer = {"num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"model_type": "bert", "vocab_size": len(WORDS), "hidden_size": 8, "intermediate_size": 8,
            "max_position_embeddings": 16, **one_layer}  # fmt: skip
    sides = ("encoder", "decoder")
    sizes = {f"{side}_attention_heads": 4 for side in sides} | {f"{side}_ffn_dim": 32 for side in sides}
    config = GroundingDinoConfig(
        backbone_config=backbone, text_config=text, d_model=32, encoder_layers=1, decoder_layers=2, num_queries=5,
        max_text_len=16, **sizes,
    )  # fmt: skip
    GroundingDinoForObjectDetection(config).save_pretrained(detector)
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}, model_max_length=16)
    processor = GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    GroundingDinoProcessor(processor, tokenizer).save_pretrained(detector)
    vision = SamVisionConfig(
        hidden_size=16, output_channels=16, image_size=64, patch_size=8, window_size=4, global_attn_indexes=[0],
        mlp_dim=16, num_pos_feats=8, **one_layer,
    )  # fmt: skip
    prompts = SamPromptEncoderConfig(hidden_size=16, image_size=64, patch_size=8, mask_input_channels=4)
    decoder = SamMaskDecoderConfig(hidden_size=16, mlp_dim=16, iou_head_hidden_dim=8, **one_layer)
    SamModel(
        SamConfig(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder)
    ).save_pretrained(sam)
    sizes = {"size": {"longest_edge": 64}, "pad_size": {"height": 64, "width": 64}}
    SamProcessor(
        SamImageProcessor(**sizes, mask_size={"longest_edge": 16}, mask_pad_size={"height": 16, "width": 16})
    ).save_pretrained(sam)
    return detector, sam


def test_a_noun_becomes_a_mask_of_the_pictures_size(folders: tuple[Path, Path]) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 64, 3), dtype=np.uint8))
    found = [GroundedSAM.load(*map(str, folders), threshold=0.0).segment(picture, "Bear") for _ in range(2)]
    assert all(f is not None for f in found)
    assert found[0].mask.shape == (40, 64) and found[0].mask.dtype == bool
    assert found[0].method == "grounded-sam" and 0 <= found[0].score <= 1
    assert np.array_equal(found[0].mask, found[1].mask)
    assert GroundedSAM.load(*map(str, folders), threshold=1.0).segment(picture, "bear") is None


def test_a_model_that_is_not_there_is_named() -> None:
    with pytest.raises(OSError, match="no-such-folder"):
        GroundedSAM.load("./no-such-folder")
