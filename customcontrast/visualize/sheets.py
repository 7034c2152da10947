"""Pictures side by side, over a checkerboard, or one after the other."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import imageio.v3 as writer
import numpy as np
from PIL import Image, ImageDraw

from customcontrast.visualize.drawing import INK, LINE, PAPER, SOFT, fit, font, frame, label, shorten

GAP = 10  # px between pictures


def contact_sheet(
    images: Sequence[Image.Image],
    captions: Sequence[str] | None = None,
    columns: int | None = None,
    tile: int = 200,
    title: str = "",
) -> Image.Image:
    """Pictures in rows, each scaled to fit a square, with a caption of any number of lines below it.

    columns: pictures in a row; None = so many that the last row is as full as can be. tile: side of a square, px.
    title: one line above all.

    Raises:
        ValueError: no pictures, or another number of captions.
    """
    images = list(images)
    if not images:
        raise ValueError("images: got none; give at least one picture.")
    if captions is not None and len(captions) != len(images):
        raise ValueError(f"captions: got {len(captions)} for {len(images)} pictures; give one for each.")
    columns = min(len(images), columns or _even_columns(len(images)))
    size = max(10, tile // 15)
    lines = max((caption.count("\n") + 1 for caption in captions or ()), default=0)
    high = tile + GAP + round(1.3 * size * lines) + (size - size // 3 if lines else 0)
    head = 3 * size if title else 0
    rows = -(-len(images) // columns)
    canvas = Image.new("RGB", (columns * (tile + GAP) + GAP, head + rows * high + GAP), PAPER)
    if title:
        label(canvas, canvas.width / 2, GAP, title, canvas.width - 2 * GAP, round(1.3 * size), bold=True)
    for number, image in enumerate(images):
        left, top = GAP + number % columns * (tile + GAP), head + GAP + number // columns * high
        canvas.paste(fit(_flat(image), (tile, tile)), (left, top))
        if captions is not None:
            for line, text in enumerate(captions[number].split("\n")):
                y = top + tile + size // 3 + round(1.3 * size * line)
                label(canvas, left + tile / 2, y, text, tile, size, color=SOFT)
    return canvas


def compare_row(
    images: Sequence[Image.Image], captions: Sequence[str], height: int = 256, title: str = ""
) -> Image.Image:
    """The reference and generated pictures in a row, each with its caption below, the first one's in bold.

    height: of each picture, px. Raises ValueError for no pictures, or another number of captions.
    """
    if not images or len(images) != len(captions):
        raise ValueError(f"captions: got {len(captions)} for {len(images)} pictures; give one for each.")
    size = max(11, height // 16)
    cells = [fit(_flat(image), (max(8, round(height * image.width / image.height)), height)) for image in images]
    head = 3 * size if title else 0
    width = sum(cell.width for cell in cells) + GAP * (len(cells) + 1)
    canvas = Image.new("RGB", (width, head + height + 2 * GAP + 2 * size), PAPER)
    if title:
        label(canvas, width / 2, GAP, title, width - 2 * GAP, round(1.2 * size), bold=True)
    left = GAP
    for number, cell in enumerate(cells):
        canvas.paste(cell, (left, head + GAP))
        frame(canvas, (left, head + GAP, left + cell.width, head + GAP + height), LINE)
        top = head + GAP + height + size // 2
        label(canvas, left + cell.width / 2, top, captions[number], cell.width, size, number == 0, INK)
        left += cell.width + GAP
    return canvas


def labelled_grid(
    rows: Sequence[Sequence[Image.Image]],
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    tile: int = 256,
    title: str = "",
) -> Image.Image:
    """Pictures over two parameters: column labels above, row labels at the left, an optional title.

    Args:
        rows: pictures, row by row; all rows of one length.
        row_labels: one for each row, "" for none.
        column_labels: one for each column.
        tile: width of a picture, px.
        title: one line above all.

    Raises:
        ValueError: no pictures, or a number of labels that does not match them.
    """
    widths = {len(row) for row in rows}
    if not rows or widths != {len(column_labels)} or len(rows) != len(row_labels) or not column_labels:
        raise ValueError(
            f"labels: got {len(row_labels)}, {len(column_labels)} for {len(rows)} rows of {sorted(widths)} pictures; "
            "give one for each row and column."
        )
    size = max(11, tile // 16)
    cells = [[fit(_flat(image), (tile, round(tile * image.height / image.width))) for image in row] for row in rows]
    high = max(cell.height for row in cells for cell in row)
    side = round(tile * 0.62) if any(row_labels) else 0
    head = (3 * size if title else 0) + 2 * size
    canvas = Image.new(
        "RGB", (side + len(column_labels) * (tile + GAP) + GAP, head + len(rows) * (high + GAP) + GAP), PAPER
    )
    if title:
        label(canvas, canvas.width / 2, GAP, title, canvas.width - 2 * GAP, round(1.3 * size), bold=True)
    for c, text in enumerate(column_labels):
        label(canvas, side + GAP + c * (tile + GAP) + tile / 2, head - size - GAP // 2, text, tile, size, bold=True)
    for r, row in enumerate(cells):
        top = head + GAP + r * (high + GAP)
        if side:
            _block(canvas, GAP, top + high / 2, row_labels[r], side - GAP, size)
        for c, cell in enumerate(row):
            canvas.paste(cell, (side + GAP + c * (tile + GAP), top))
    return canvas


def _block(canvas: Image.Image, left: float, middle: float, text: str, width: int, size: int) -> None:
    """Text over several lines at most `width` px wide, centred at the height `middle`."""
    face = font(size, bold=True)
    lines: list[str] = []
    for word in str(text).split() or [""]:
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and face.getlength(joined) <= width:
            lines[-1] = joined
        else:
            lines.append(word)
    block = "\n".join(shorten(line, face, width) for line in lines[:6])
    draw = ImageDraw.Draw(canvas)
    draw.multiline_text((left, middle), block, font=face, fill=INK, anchor="lm", spacing=size // 3)


def checkerboard(cutout: Image.Image, square: int | None = None) -> Image.Image:
    """A cut-out (RGBA) over a grey checkerboard, the sign of transparency. square: side of its fields, px."""
    square = square or max(4, max(cutout.size) // 32)
    y, x = np.indices((cutout.height, cutout.width)) // square
    board = np.where(((x + y) % 2)[..., None], 250, 228).astype(np.uint8).repeat(3, axis=-1)
    ground = Image.fromarray(board).convert("RGBA")
    return Image.alpha_composite(ground, cutout.convert("RGBA")).convert("RGB")


def animation(frames: Sequence[Image.Image], path: str | Path, fps: float = 5, hold: float = 1.0) -> Path:
    """Write frames as an endless GIF or an MP4 (H.264), by the ending of `path`.

    Args:
        frames: pictures; all are fitted to the first one's size.
        path: ends in .gif or .mp4; its folder is made if need be.
        fps: frames a second.
        hold: seconds for which the last frame stays.

    Returns:
        The path.

    Raises:
        ValueError: no frames, another ending, or a rate that is not positive.
    """
    path, frames = Path(path), list(frames)
    if not frames:
        raise ValueError("frames: got none; give at least one picture.")
    if path.suffix.lower() not in (".gif", ".mp4"):
        raise ValueError(f"path: got '{path.name}'; end it in .gif or .mp4.")
    if not fps > 0:
        raise ValueError(f"fps: got {fps}; give a positive number.")
    width, height = frames[0].size
    if path.suffix.lower() == ".mp4":  # H.264 takes even sides only
        width, height = width + width % 2, height + height % 2
    still = [fit(frame, (width, height)) for frame in frames]
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".gif":
        durations = [round(1000 / fps)] * (len(still) - 1) + [round(1000 * max(hold, 1 / fps))]
        first, *others = _one_palette(still)
        first.save(path, save_all=True, append_images=others, duration=durations, loop=0)
        return path
    still += [still[-1]] * round(hold * fps)
    writer.imwrite(
        path, np.stack([np.asarray(f) for f in still]), plugin="FFMPEG", fps=fps, codec="libx264",
        macro_block_size=2, output_params=["-crf", "18"], pixelformat="yuv420p",
    )  # fmt: skip
    return path


def save_small(picture: Image.Image, path: str | Path, most: int = 200_000) -> Path:
    """Write a picture as WebP, at the best quality with which it has at most `most` bytes. Returns the path.

    Raises ValueError where no quality is small enough.
    """
    path = Path(path).with_suffix(".webp")
    for quality in (92, 86, 80, 72, 64, 55, 45, 35):
        buffer = io.BytesIO()
        picture.convert("RGB").save(buffer, "WEBP", quality=quality, method=6)
        if buffer.tell() <= most:
            path.write_bytes(buffer.getvalue())
            return path
    raise ValueError(
        f"{path.name}: {picture.width} x {picture.height} px do not fit into {most} bytes; make it smaller."
    )


def _even_columns(count: int) -> int:
    """Columns for a sheet a little wider than high, with the fewest empty places in its last row."""
    near = max(1, round(1.2 * count**0.5))
    choices = range(max(1, near - 1), near + 2)
    return min(choices, key=lambda columns: (-count % columns, abs(columns - near)))


def _one_palette(frames: Sequence[Image.Image]) -> list[Image.Image]:
    """Frames of one size in one palette of 256 colours, made from samples of them all: steady and quick."""
    small = [np.asarray(frame.resize((64, 64))) for frame in frames[:: max(1, len(frames) // 16)]]
    palette = Image.fromarray(np.concatenate(small)).quantize(256, Image.Quantize.MEDIANCUT)
    return [frame.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG) for frame in frames]


def _flat(image: Image.Image) -> Image.Image:
    """Transparent pictures over a checkerboard, others as they are."""
    return checkerboard(image) if image.mode in ("RGBA", "LA", "PA") else image
