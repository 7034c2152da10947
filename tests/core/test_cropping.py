"""cropping: faces by the cascade that OpenCV ships, on drawn faces; boxes with a margin stay inside the picture."""

from __future__ import annotations

from PIL import Image, ImageDraw, ImageFilter

from customcontrast.images.cropping import find_faces, widened


def draw_face(picture: Image.Image, x: int, y: int, side: int) -> None:
    """A frontal face in greys in the square of `side` px at (x, y): head, hair, eyes under brows, nose, mouth."""
    d = ImageDraw.Draw(picture)

    def oval(cx: float, cy: float, rx: float, ry: float, grey: int) -> None:
        corners = (cx - rx, cy - ry, cx + rx, cy + ry)
        d.ellipse([at + side * share for at, share in zip((x, y, x, y), corners, strict=True)], fill=(grey,) * 3)

    oval(0.5, 0.55, 0.46, 0.6, 190)
    oval(0.5, 0.08, 0.5, 0.25, 60)
    for cx in (0.3, 0.7):
        oval(cx, 0.42, 0.15, 0.10, 120)
        oval(cx, 0.44, 0.11, 0.055, 235)
        oval(cx, 0.44, 0.05, 0.055, 30)
        d.rectangle([x + side * (cx - 0.15), y + side * 0.29, x + side * (cx + 0.15), y + side * 0.34], fill=(70,) * 3)
    d.polygon([(x + side * a, y + side * b) for a, b in ((0.5, 0.4), (0.42, 0.72), (0.58, 0.72))], fill=(215,) * 3)
    for cx in (0.44, 0.56):
        oval(cx, 0.72, 0.04, 0.025, 90)
    oval(0.5, 0.9, 0.2, 0.06, 110)
    oval(0.5, 0.885, 0.17, 0.012, 50)


def test_faces_are_found_where_they_are_largest_first() -> None:
    picture, drawn = Image.new("RGB", (420, 300), (90, 90, 90)), ((320, 180, 90), (40, 40, 200))
    for x, y, side in drawn:
        draw_face(picture, x, y, side)
    found = find_faces(picture.filter(ImageFilter.GaussianBlur(2)))
    assert len(found) == 2
    for box, (x, y, side) in zip(found, reversed(drawn), strict=True):
        centre = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        assert abs(centre[0] - x - side / 2) < 0.15 * side and abs(centre[1] - y - 0.6 * side) < 0.2 * side
        assert 0.9 * side < box[2] - box[0] < 1.5 * side
    assert find_faces(Image.new("RGB", (200, 100), "white")) == []


def test_a_margin_ends_at_the_picture() -> None:
    assert widened((10, 20, 30, 60), 0.5, (35, 100)) == (0, 0, 35, 80)
    assert widened((10, 20, 30, 60), 0.0, (35, 100)) == (10, 20, 30, 60)
