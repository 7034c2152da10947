"""The shortest use of the library: your subject's picture and a prompt in, a new picture of it out.

    python examples/generate.py --reference bear.png --prompt "a <bear> on the beach" --out out

Writes picture.png, location_strip.png (where the subject is, step by step) and maps.png (where each word acted).
Mark the subject's word in the prompt with <…>, or name it with --noun.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Command-line options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", nargs="+", required=True, help="picture(s) of one subject")
    parser.add_argument("--prompt", required=True, help='such as "a <bear> on the beach"')
    parser.add_argument("--out", required=True, type=Path, help="folder for the results")
    parser.add_argument("--noun", help="the subject's class noun; default: the marked word, or a guess")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="denoising steps")
    parser.add_argument("--subject-scale", type=float, default=1.0, help="lambda: how strongly the subject is drawn in")
    parser.add_argument("--base", default="toyland", help="toyland, sd15 or sdxl")
    parser.add_argument("--weights", help="folder or hub id of the base's weights")
    parser.add_argument("--adapter", help="adapter file (.safetensors)")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> None:
    """Segment, look, generate, write. Raises ValueError or OSError with one sentence."""
    from customcontrast import CustomContrast, Segmenter, visualize
    from customcontrast.conditioning.prompt import guess_noun

    noun = options.noun or guess_noun(options.prompt)
    segmenter = Segmenter()
    segmentations = [segmenter.auto(picture) for picture in options.reference]

    model = CustomContrast.load(options.base, options.weights, options.adapter)
    subject = model.subject(segmentations, noun)
    result = model.generate(
        options.prompt,
        [subject],
        seed=options.seed,
        num_inference_steps=options.steps,
        subject_scale=options.subject_scale,
    )

    options.out.mkdir(parents=True, exist_ok=True)
    picture = result.images[0]
    picture.save(options.out / "picture.png")
    strip = visualize.location_strip(segmentations[0].image, result.location_masks[0, :, 0], picture)
    strip.save(options.out / "location_strip.png")
    mean = result.text_maps[0].astype("float32").mean(axis=0)  # over the steps: (tokens, h, w)
    maps = {f"{i}. {word}": mean[places].mean(axis=0) for i, (word, places) in enumerate(result.words, start=1)}
    visualize.token_grid(picture, maps).save(options.out / "maps.png")

    print(f"{result.prompt!r} in {sum(result.seconds.values()):.1f} s -> {options.out}")
    for note in result.notes:
        print(f"note: {note}")
    if result.truncated:
        print(f"note: these words did not fit: {result.truncated}")
    for word, nearest in model.unknown_words(options.prompt):
        print(
            f"note: this model was never shown {word!r}"
            + (f"; the nearest it knows is {nearest!r}." if nearest else ".")
        )


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0, or 1 after one sentence on the error output."""
    options = parse(arguments)
    try:
        run(options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
