"""The `customcontrast` command: the page, one picture, or a cut-out, without writing any Python.

customcontrast page --base toyland
customcontrast generate --reference bear.png --prompt "a <bear> on the beach" --out out
customcontrast segment bear.png --out out
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from customcontrast.config import ROLES
from customcontrast.folders import check_folder, make_folder
from customcontrast.model_options import ModelChoice, add_model_options, check_model_options


def add_generate_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `generate` to a parser."""
    parser.add_argument("--reference", nargs="+", required=True, help="picture(s) of one subject")
    parser.add_argument("--prompt", required=True, help='such as "a <bear> on the beach"')
    parser.add_argument("--out", required=True, type=Path, help="folder for the results")
    parser.add_argument("--noun", help="the subject's class noun; default: the marked word, or a guess")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="denoising steps")
    parser.add_argument(
        "--subject-scale", type=float, help="lambda, the weight of the visual branch; default 1, an IP-Adapter's 0.6"
    )
    parser.add_argument("--style", help="picture whose style the result is to have (SD-1.5, SDXL with an IP-Adapter)")
    parser.add_argument("--style-strength", type=float, default=1.0, help="how much of that style: its own lambda")
    parser.add_argument(
        "--style-role", choices=ROLES[1:], default=ROLES[1], help="what is taken from it; default %(default)s"
    )
    parser.add_argument(
        "--reference-resolution", type=int, help="px at which the references are seen; default: the encoder's own"
    )
    add_model_options(parser, base="toyland")


def generate(options: argparse.Namespace) -> None:
    """Generate one picture; write picture.png, location_strip.png and maps.png. Raises ValueError or OSError."""
    from customcontrast import visualize
    from customcontrast.conditioning.prompt import guess_noun
    from customcontrast.config import GenerationConfig
    from customcontrast.images.loading import load_picture
    from customcontrast.segmentation import Segmenter

    noun = options.noun or guess_noun(options.prompt)
    settings = {
        "seed": options.seed,
        "num_inference_steps": options.steps,
        "subject_scale": options.subject_scale,
    }
    GenerationConfig(options.prompt, **settings)  # raises before anything is loaded
    check_folder(options.out, "--out")
    segmenter = Segmenter()
    segmentations = [segmenter.auto(picture) for picture in options.reference]
    style = load_picture(options.style, "style") if options.style else None

    model = ModelChoice.of(options).load()
    seen = {"reference_resolution": options.reference_resolution}
    subjects = [model.subject(segmentations, noun, **seen)]
    if style is not None:
        subjects.append(model.style(style, options.style_strength, options.style_role, **seen))
    result = model.generate(
        options.prompt,
        subjects,
        **settings,
    )

    make_folder(options.out, "--out")
    picture = result.images[0]
    picture.save(options.out / "picture.png")
    strip = visualize.location_strip(segmentations[0].image, result.location_masks[0, :, 0], picture)
    strip.save(options.out / "location_strip.png")
    mean = result.text_maps[0].astype("float32").mean(axis=0)  # over the steps: (tokens, h, w)
    maps = {f"{i}. {word}": mean[places].mean(axis=0) for i, (word, places) in enumerate(result.words, start=1)}
    visualize.token_grid(picture, maps).save(options.out / "maps.png")

    print(f"{result.prompt!r} in {sum(result.seconds.values()):.1f} s -> {options.out}")
    if model.memory is not None:
        print(f"note: {model.memory.sentence}")
    for note in result.notes:
        print(f"note: {note}")
    if result.truncated:
        print(f"note: these words did not fit: {result.truncated}")
    for word, nearest in model.unknown_words(options.prompt):
        hint = f"; the nearest it knows is {nearest!r}." if nearest else "."
        print(f"note: this model was never shown {word!r}{hint}")


def segment(options: argparse.Namespace) -> None:
    """Cut subjects out: NAME-cutout.png with a transparent ground, NAME-mask.png. Raises ValueError or OSError."""
    from customcontrast.segmentation import Segmenter

    segmenter = Segmenter(sam_checkpoint=options.sam_checkpoint)
    make_folder(options.out, "--out")
    for picture in options.pictures:
        found = segmenter.auto(picture)
        stem = options.out / Path(picture).stem
        found.cutout.save(f"{stem}-cutout.png")
        found.mask_image.save(f"{stem}-mask.png")
        print(f"{picture}: box {found.box}, score {found.score:.2f}, by {found.method} -> {stem}-cutout.png")


def page(arguments: Sequence[str]) -> int:
    """Start the page with its own options (`customcontrast page --help`)."""
    from customcontrast.ui.server import main as serve

    return serve(arguments)


def run_generate(arguments: Sequence[str] | None, prog: str, description: str) -> int:
    """The `generate` command; its exit status is 0, or 1 after one sentence on the error output."""
    parser = argparse.ArgumentParser(
        prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_generate_options(parser)
    options = parser.parse_args(arguments)
    check_model_options(parser, options)
    return _one_sentence(generate, options)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; its exit status is 0, 1 after one sentence on the error output, 2 for a wrong option."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["page"]:
        return page(given[1:])
    parser = argparse.ArgumentParser(
        prog="customcontrast", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("page", help="start the page and its API")
    add_generate_options(commands.add_parser("generate", help="one picture of your subject"))
    cut = commands.add_parser("segment", help="cut subjects out of pictures")
    cut.add_argument("pictures", nargs="+")
    cut.add_argument("--out", required=True, type=Path, help="folder for the results")
    cut.add_argument("--sam-checkpoint", help="segment-anything weights; default: none are needed")
    options = parser.parse_args(given)
    if options.command == "generate":
        check_model_options(parser, options)
    return _one_sentence({"generate": generate, "segment": segment}[options.command], options)


def _one_sentence(command: Callable[[argparse.Namespace], None], options: argparse.Namespace) -> int:
    try:
        command(options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
