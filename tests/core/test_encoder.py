"""encoder: Eq. 2 against its formula, and what each Q-Former may and may not see."""

from __future__ import annotations

import math

import pytest
import torch
from PIL import Image

from customcontrast.base_model import BaseModel, encoder_config
from customcontrast.config import EncoderConfig
from customcontrast.encoder import MFIEncoder, token_sources
from customcontrast.encoder.image_features import embed, evenly_spaced, extract
from customcontrast.encoder.perceiver import PerceiverAttention, QFormer
from customcontrast.encoder.queries import SpatiotemporalQueries, fourier
from tests.support.tiny_models import ENCODER

CONFIG = EncoderConfig(image_width=24, image_layers=(6, 4, 2), text_widths=(32, 40), num_layers=4, **ENCODER)


def features(batch: int = 2) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(3)
    return tuple(torch.randn(batch, 10, 24) for _ in range(3))


def encoder(**flags: bool) -> MFIEncoder:
    torch.manual_seed(0)
    return MFIEncoder(EncoderConfig(**(CONFIG.to_dict() | flags))).eval()


def test_eq_2_against_a_plain_loop() -> None:
    torch.manual_seed(0)
    pa = PerceiverAttention(8, heads=2)
    f, q = torch.randn(2, 5, 8), torch.randn(2, 3, 4, 8)
    out = pa(f, q)
    for b in range(2):
        for r in range(3):
            nf, nq = pa.norm_f(f[b]), pa.norm_q(q[b, r])
            both = torch.cat([nf, nq])  # [f, q]
            Q, K, V = pa.to_q(nq), pa.to_k(both), pa.to_v(both)
            halves = (slice(0, 4), slice(4, 8))
            heads = [torch.softmax(Q[:, h] @ K[:, h].T / math.sqrt(4), dim=-1) @ V[:, h] for h in halves]
            assert torch.allclose(out[b, r], pa.to_out(torch.cat(heads, dim=-1)), atol=1e-6)


def test_keys_of_all_blocks_in_one_product_are_those_of_each() -> None:
    """Training's way through a Q-Former against its blocks one by one: values, and gradients of all that is trained."""
    torch.manual_seed(0)
    qformer = QFormer(8, heads=2, depth=3, feedforward=2)
    for name, weight in qformer.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(weight, std=0.5)
    f, q = torch.randn(2, 9, 8, requires_grad=True), torch.randn(2, 3, 4, 8, requires_grad=True)
    plain = q
    for block in qformer.blocks:
        plain = block(f, plain)
    ways = [qformer(f, q), qformer.norm(plain)]
    torch.testing.assert_close(*ways, atol=1e-5, rtol=1e-5)
    trained, weight = [f, q, *qformer.parameters()], torch.randn(2, 3, 4, 8)
    grads = [torch.autograd.grad((way * weight).sum(), trained) for way in ways]
    torch.testing.assert_close(*grads, atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        assert torch.allclose(qformer(f, q), ways[0], atol=1e-5)


def test_rows_of_queries_do_not_see_each_other() -> None:
    torch.manual_seed(0)
    pa = PerceiverAttention(8, heads=2)
    f, q = torch.randn(1, 5, 8), torch.randn(1, 3, 4, 8)
    changed = q.clone()
    changed[:, 1] += 1
    same = (pa(f, q) - pa(f, changed)).abs().amax(dim=(0, 2, 3)) == 0
    assert same.tolist() == [True, False, True]


def test_fourier_mapping_by_hand() -> None:
    x = torch.tensor([0.25])
    expected = [math.sin(math.pi / 4), math.sin(math.pi / 2), math.cos(math.pi / 4), math.cos(math.pi / 2)]
    assert torch.allclose(fourier(x, 2), torch.tensor(expected), atol=1e-6)


def test_queries_depend_on_timestep_and_layer() -> None:
    torch.manual_seed(0)
    queries = SpatiotemporalQueries(3, 16, num_layers=4, num_train_timesteps=1000, bands=3)
    q = queries(torch.tensor([10, 500]))
    assert q.shape == (2, 4, 4, 16)
    flat = q.flatten(0, 1).flatten(1)
    distances = torch.cdist(flat, flat) + torch.eye(8)
    assert distances.min() > 1e-3, "every (t, l) has queries of its own"
    assert torch.allclose(queries(torch.tensor([500]), torch.tensor([2])), q[1:, 2:3], atol=1e-6)


def test_output_shapes_and_text_spaces() -> None:
    out = encoder()(encoder().encode_image(features()), torch.tensor([10, 900]))
    assert [tokens.shape for tokens in out.text_tokens] == [(2, 4, 3, 32), (2, 4, 3, 40)]
    assert out.text_cls.shape == (2, 4, 32)
    assert out.visual_tokens.shape == (2, 4, 3, 32)
    assert out.visual_cls.shape == (2, 32)


def test_one_subject_at_many_timesteps_equals_a_batch() -> None:
    model, t = encoder(), torch.tensor([1, 300, 999])
    f_I = model.encode_image(features(1))
    many, batch = model(f_I, t), model(f_I.expand(3, -1, -1), t)
    for a, b in zip(many.text_tokens, batch.text_tokens, strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    assert torch.allclose(many.visual_tokens, batch.visual_tokens, atol=1e-5)
    assert torch.allclose(many.text_cls, batch.text_cls, atol=1e-5)
    assert torch.allclose(many.visual_cls, batch.visual_cls, atol=1e-5)


def test_samples_do_not_see_each_other() -> None:
    model, t = encoder(), torch.tensor([5, 5])
    states = features()
    f_I = model.encode_image(states)
    other = model.encode_image(tuple(torch.cat([h[:1], h[1:] + 1]) for h in states))
    a, b = model(f_I, t), model(other, t)
    assert torch.equal(a.visual_tokens[0], b.visual_tokens[0])
    assert not torch.equal(a.visual_tokens[1], b.visual_tokens[1])


def test_the_textual_features_ask_in_tv_fusion() -> None:
    model = encoder()
    torch.manual_seed(1)
    f_v, f_t = torch.randn(1, 5, 32), torch.randn(1, 4, 3, 32)
    f_tv = model.fuse(f_v, f_t)
    assert f_tv.shape == f_t.shape, "n features per layer, not m"
    assert torch.allclose(model.fuse(f_v.flip(1), f_t), f_tv, atol=1e-5), "keys have no order"


def test_ablation_visual_only() -> None:
    model = encoder(textual=False, tv_fusion=False)
    out = model(model.encode_image(features()), torch.tensor([1, 900]))
    assert out.text_tokens == [] and out.text_cls is None
    assert out.visual_tokens.shape == (2, 4, 5, 32), "m features, the same in every layer"
    assert torch.equal(out.visual_tokens[:, 0], out.visual_tokens[:, 3])
    assert not any("text" in name or "tv" in name for name in model.state_dict())


def test_ablation_without_fusion_keeps_s_star() -> None:
    model = encoder(tv_fusion=False)
    out = model(model.encode_image(features()), torch.tensor([1, 900]))
    assert out.visual_tokens.shape == (2, 4, 5, 32)
    assert out.text_tokens[0].shape == (2, 4, 3, 32)


def test_s_star_starts_at_the_scale_of_the_token_table(tiny_base: BaseModel) -> None:
    torch.manual_seed(0)
    config = encoder_config(tiny_base, width=128, heads=2, depth=1)
    model = MFIEncoder(config)
    tokens = model(model.encode_image(features()), torch.tensor([1, 900])).text_tokens[0]
    rms = float(tokens.detach().pow(2).mean().sqrt())
    assert rms == pytest.approx(config.text_scales[0], rel=0.3)


def test_wrong_inputs_get_a_sentence() -> None:
    model = encoder()
    with pytest.raises(ValueError, match="2 layers"):
        model.encode_image(features()[:2])
    with pytest.raises(ValueError, match="one t per subject"):
        model(model.encode_image(features()), torch.tensor([1, 2, 3]))


def test_image_layers_are_the_last_and_two_evenly_spaced() -> None:
    assert evenly_spaced(24) == (24, 16, 8)
    assert evenly_spaced(6) == (6, 4, 2)
    with pytest.raises(ValueError, match="2 layers"):
        evenly_spaced(2)


def test_extract_reads_the_layers_in_order(any_base: BaseModel) -> None:
    pictures = [Image.new("RGB", (30, 40), "red"), Image.new("L", (50, 50))]
    states = extract(any_base, pictures)
    assert [h.shape for h in states] == [(2, 10, 24)] * 3
    last = extract(any_base, pictures, (6,))[0]
    assert torch.equal(states[0], last), "the last layer, the coarsest, comes first"
    normed = any_base.image_encoder.vision_model.post_layernorm(last[:, 0])
    embeds = any_base.image_encoder.visual_projection(normed)
    assert torch.allclose(embeds, embed(any_base, pictures), atol=1e-5)


def test_tv_fusion_is_eq_2_and_a_norm_alone() -> None:
    """f_tv = norm(PA(f_v, f_t)): nothing of f_t goes past the attention."""
    model = encoder(fusion="pa")
    torch.manual_seed(1)
    f_v, f_t = torch.randn(2, 5, 32), torch.randn(2, 4, 3, 32)
    assert torch.equal(model.fuse(f_v, f_t), model.tv_norm(model.tv_fusion(f_v, f_t)))
    assert isinstance(model.tv_fusion, PerceiverAttention)


def test_without_query_values_all_that_fusion_says_comes_from_f_v() -> None:
    """f_t decides how much of each feature of f_v, and no more: of equal features it has nothing to choose."""
    model = encoder(fusion="pa", fusion_values=False)
    torch.manual_seed(1)
    f_t, other = torch.randn(1, 4, 3, 32), torch.randn(1, 4, 3, 32)
    same = torch.randn(1, 1, 32).expand(1, 5, 32)
    assert torch.allclose(model.fuse(same, f_t), model.fuse(same, other), atol=1e-6)
    f_v = torch.randn(1, 5, 32)
    assert not torch.allclose(model.fuse(f_v, f_t), model.fuse(f_v, other), atol=1e-3)
    on_f, on_q = model.tv_fusion.weights(f_v, f_t)
    assert on_q.shape[-1] == 0 and torch.allclose(on_f.sum(-1), torch.ones(on_f.shape[:-1]))


def test_what_fusion_carries_of_each_side() -> None:
    """Swapping f_v moves f_tv more than swapping f_t; in the block of older files it is the other way round."""

    def moved(model: MFIEncoder) -> tuple[float, float]:
        torch.manual_seed(2)
        f_v, v2, f_t, t2 = (
            torch.randn(4, 5, 32),
            torch.randn(4, 5, 32),
            torch.randn(4, 4, 3, 32),
            torch.randn(4, 4, 3, 32),
        )
        f_tv = model.fuse(f_v, f_t)
        return tuple((model.fuse(*pair) - f_tv).pow(2).mean().item() for pair in ((v2, f_t), (f_v, t2)))

    by_v, by_t = moved(encoder(fusion="pa"))
    old_v, old_t = moved(encoder(fusion="block"))
    assert by_v > by_t and old_v < old_t


def test_a_file_without_the_field_is_read_as_a_block() -> None:
    values = {k: v for k, v in CONFIG.to_dict().items() if k not in ("fusion", "fusion_values")}
    assert EncoderConfig.from_dict(values).fusion == "block" and CONFIG.fusion == "pa"
    with pytest.raises(ValueError, match="fusion='mean'"):
        EncoderConfig.from_dict(values | {"fusion": "mean"})


@pytest.mark.parametrize("flags", [{"fusion": "pa"}, {"fusion": "pa", "fusion_values": False}, {"fusion": "block"}])
def test_sources_of_fused_tokens_are_shares(flags: dict) -> None:
    model = encoder(**flags)
    f_I = model.encode_image(features(1))
    sources = token_sources(model, f_I, torch.tensor([10, 500]), references=1)
    assert sources.shape == (2, 4, 3, 1, 9)
    assert torch.allclose(sources.sum((-2, -1)), torch.ones(2, 4, 3), atol=1e-5)
