"""One call of a UNet of SD-1.5's true size, random weights: text alone, IP-Adapter, and ours with masks and maps.

python -m tests.benchmarks.true_size [--side 256] [--rounds 5]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from types import SimpleNamespace

import torch
from diffusers import UNet2DConditionModel

from customcontrast.attention import MapRecorder, SubjectBranch, SubjectState, install_processors, unet_forward
from tests.benchmarks.generation import add_ip_adapter
from tests.benchmarks.timing import interleave, summarize

SD15 = {"cross_attention_dim": 768, "attention_head_dim": 8}
TEXT, TOKENS, PROMPT = 77, 4, 12  # text tokens, S* tokens, tokens of the prompt whose maps are kept


@torch.no_grad()
def contenders(side: int) -> dict[str, Callable[[], object]]:
    """side: of the picture, px. Each call denoises one picture with classifier-free guidance by one step.

    S+ and the adapter's keys and values are given: what they cost is the other benchmark's.
    """
    torch.manual_seed(0)
    plain = UNet2DConditionModel(**SD15).requires_grad_(False).eval()
    ip, unet = _twin(plain), _twin(plain)
    add_ip_adapter(SimpleNamespace(unet=ip, image_encoder=SimpleNamespace(config=SimpleNamespace(projection_dim=768))))
    specs = install_processors(unet)

    size = (side // 8, side // 8)
    z, text, image = torch.randn(2, 4, *size), torch.randn(2, TEXT, 768), torch.randn(2, 1, 768)
    keys, values = ([torch.randn(1, TOKENS + 1, spec.width) for spec in specs] for _ in range(2))
    positions = torch.zeros(1, TEXT)
    positions[:, 4 : 4 + TOKENS] = 1
    branch = SubjectBranch(keys, values, positions)
    groups = (text[:1, None], text[1:, None].repeat(1, len(specs), 1, 1))
    masks, kept = torch.rand(1, 1, *size), {}

    @torch.no_grad()
    def stock(unet: UNet2DConditionModel, **options: object) -> object:
        return unet(z, 500, encoder_hidden_states=text, **options)

    @torch.no_grad()
    def ours(masked: bool, tokens: int | None) -> object:
        state = SubjectState(
            groups,
            size,
            (branch,),
            first=1,
            masks=masks if masked else None,
            recorder=None if tokens is None else MapRecorder(tokens),
            steady=(True, False),
            kept=kept,
        )
        return unet_forward(SimpleNamespace(unet=unet), z, 500, state)

    return {
        "IP-Adapter (diffusers)": lambda: stock(ip, added_cond_kwargs={"image_embeds": [image]}),
        "plain UNet (diffusers)": lambda: stock(plain),
        "ours, maps off": lambda: ours(False, None),
        "ours, location masks": lambda: ours(True, 0),
        "ours, all maps": lambda: ours(True, PROMPT),
    }


def _twin(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """A UNet with processors of its own on the same weights."""
    with torch.device("meta"):
        twin = UNet2DConditionModel.from_config(unet.config)
    twin.load_state_dict(unet.state_dict(), assign=True)
    return twin.requires_grad_(False).eval()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.true_size")
    parser.add_argument("--side", type=int, default=256, help="px, a multiple of 64")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(f"SD-1.5's UNet, {options.side} px, one call, {options.rounds} rounds, {torch.get_num_threads()} threads")
    for row in summarize(interleave(contenders(options.side), options.rounds)):
        print(f"{row.name:28} {row.seconds:7.3f} s ± {row.iqr:.3f}   {row.ratio:5.2f} × ± {row.ratio_iqr:.2f}")


if __name__ == "__main__":
    main()
