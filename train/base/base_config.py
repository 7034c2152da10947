"""Sizes and schedules of Toyland's embedded base model: two presets, one code path."""

from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class PoolConfig:
    """Rendered training pictures (`train.base.pool`), and how many of each subject."""

    world: str = "small"  # name of a train.toyland.World preset
    size: int = 96  # side of a picture, px
    subjects_per_shard: int = 32  # distinct subjects in one shard
    views: int = 3  # placements (view, pose, position) of each subject
    variants: int = 2  # background and style variants of each placement
    captions: int = 4  # phrasings stored for each picture


@dataclass(frozen=True)
class ClipConfig:
    """Sizes and training of the two CLIP towers: text encoder and image encoder."""

    width: int = 192  # hidden width of both towers
    heads: int = 4
    text_layers: int = 4
    vision_layers: int = 6
    patch: int = 12  # side of an image patch, px
    projection: int = 192  # joint embedding width
    image_size: int | None = None  # side of what the image tower sees, px; None: as the pool's
    max_tokens: int = 48  # length of a tokenised prompt
    vocabulary: int = 1600  # byte-level BPE tokens, special ones included
    photographs: bool = (
        False  # the image tower goes on with pictures distorted towards photographs (`train.data.augment`)
    )
    crops: float = 0.25  # share of segmented subjects among the pictures
    details: bool = False  # stage “image”: heads read the build too, and the patches of the layers that adapters read
    image_crops: float | None = None  # `crops` of stage “image”; None: the same
    attribute_weight: float = 1.0  # weight of the attribute heads (dropped after training)


@dataclass(frozen=True)
class VaeConfig:
    """The autoencoder (`customcontrast.toyland.autoencoder`): f = 8."""

    channels: tuple[int, int, int] = (32, 96, 160)  # widths at 1/2, 1/4 and 1/8 of the picture's resolution
    layers: int = 2  # residual blocks at each
    latents: int = 16  # latent channels
    groups: int = 8  # of every group norm
    evenness: float = 0.5  # of the latent channels' variances at the start: 0 as in the data, 1 equal
    grain: float = 0.05  # noise on the latents while the decoder learns, in latent units


@dataclass(frozen=True)
class UnetConfig:
    """Sizes and training of the denoiser, a `UNet2DConditionModel`."""

    channels: tuple[int, ...] = (128, 256)  # block_out_channels; cross-attention at every level
    layers: int = 1  # layers_per_block
    heads: int | tuple[int, ...] = 4  # of each level
    groups: int = 16
    drop_caption: float = 0.1  # classifier-free guidance: share of empty prompts
    snr_gamma: float = 5.0  # min-SNR weighting
    mirror: bool = False  # learn from mirrored pictures too
    layout: bool = False  # layout channels at the input (`customcontrast.layout`)
    drop_layout: float = 0.12  # share of samples whose layout is unknown
    plain: int = 0  # phrasings beside the pool's that name the subject alone, without its colours and pattern
    mask_padding: bool = False  # text cross-attention sees no padding
    finish: float = 0.0  # share of the training, at its end, over which the weight of low noise rises to min-SNR's


@dataclass(frozen=True)
class StageConfig:
    """Optimisation of one stage: AdamW with a linear warm-up and a linear end."""

    batch: int
    lr: float
    steps: int  # whole length; the last `decay` share of it falls linearly to 0
    warmup: int = 100  # steps
    decay: float = 0.3
    weight_decay: float = 0.01
    ema: float = 0.999
    clip_norm: float = 1.0


@dataclass(frozen=True)
class PretrainConfig:
    """One preset: the sizes of all parts of an embedded base, and the optimisation of each stage of its training."""

    pool: PoolConfig = field(default_factory=PoolConfig)
    clip: ClipConfig = field(default_factory=ClipConfig)
    vae: VaeConfig = field(default_factory=VaeConfig)
    unet: UnetConfig = field(default_factory=UnetConfig)
    clip_stage: StageConfig = StageConfig(batch=128, lr=1e-3, steps=1000)
    vae_stage: StageConfig = StageConfig(batch=16, lr=1e-3, steps=3000, ema=0.998)
    unet_stage: StageConfig = StageConfig(batch=64, lr=5e-4, steps=3200)
    image_stage: StageConfig = StageConfig(batch=128, lr=6e-4, steps=1500)
    decoder_stage: StageConfig = StageConfig(batch=16, lr=8e-4, steps=2500, ema=0.998)
    word_captions: int = 20_000  # random captions whose words are the exported vocabulary


CPU = PretrainConfig()
GPU = PretrainConfig(
    pool=PoolConfig(world="full", size=128, subjects_per_shard=64, views=4),
    clip=ClipConfig(
        width=384,
        heads=6,
        text_layers=6,
        vision_layers=8,
        patch=16,
        projection=256,
        max_tokens=48,
        vocabulary=2400,
    ),
    vae=VaeConfig(channels=(64, 192, 320), layers=3, groups=16),
    unet=UnetConfig(channels=(128, 256, 384), layers=1, heads=6, groups=32, mirror=True),
    clip_stage=StageConfig(batch=1024, lr=1e-3, steps=4000, warmup=300),
    vae_stage=StageConfig(batch=64, lr=5e-4, steps=12000, warmup=300),
    unet_stage=StageConfig(batch=512, lr=4e-4, steps=20000, warmup=500, ema=0.9995),
    image_stage=StageConfig(batch=1024, lr=5e-4, steps=4000),
    decoder_stage=StageConfig(batch=64, lr=3e-4, steps=8000),
)
TOYLAND2 = PretrainConfig(
    pool=PoolConfig(world="demo", size=192),
    clip=ClipConfig(patch=8, image_size=96, photographs=True, crops=0.4, details=True, image_crops=0.75),
    vae=VaeConfig(latents=12, evenness=0.25),
    unet=UnetConfig(
        channels=(64, 160, 256), heads=(4, 5, 8), mirror=True, layout=True, plain=1, mask_padding=True, finish=0.3
    ),
    clip_stage=StageConfig(batch=128, lr=1e-3, steps=1000),
    vae_stage=StageConfig(batch=8, lr=1e-3, steps=4000, ema=0.998),
    unet_stage=StageConfig(batch=16, lr=3e-4, steps=300_000, warmup=500, ema=0.9998),
    image_stage=StageConfig(batch=128, lr=1e-3, steps=2500),
    decoder_stage=StageConfig(batch=8, lr=8e-4, steps=2000, ema=0.998),
)
TINY = PretrainConfig(  # the same code in seconds: tests
    pool=PoolConfig(size=32, subjects_per_shard=4, views=2, variants=1, captions=2),
    clip=ClipConfig(
        width=32,
        heads=2,
        text_layers=1,
        vision_layers=3,
        patch=8,
        projection=16,
        max_tokens=48,
        vocabulary=700,
    ),
    vae=VaeConfig(channels=(8, 16, 16), layers=1, latents=4, groups=4),
    unet=UnetConfig(channels=(16, 32), heads=2, groups=8),
    clip_stage=StageConfig(batch=4, lr=1e-3, steps=6, warmup=2),
    vae_stage=StageConfig(batch=4, lr=1e-3, steps=6, warmup=2),
    unet_stage=StageConfig(batch=4, lr=1e-3, steps=6, warmup=2),
    image_stage=StageConfig(batch=4, lr=1e-3, steps=4, warmup=2),
    decoder_stage=StageConfig(batch=4, lr=1e-3, steps=4, warmup=2),
    word_captions=1500,
)
TINY_DEMO = replace(
    TINY,
    pool=replace(TINY.pool, world="demo"),
    clip=replace(TINY.clip, image_size=24, photographs=True),
    unet=replace(TINY.unet, heads=(2, 4), mirror=True, layout=True, plain=1, mask_padding=True, finish=0.5),
)
PRESETS = {"cpu": CPU, "gpu": GPU, "toyland2": TOYLAND2, "tiny": TINY, "tiny-demo": TINY_DEMO}
