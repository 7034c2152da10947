"""What a visitor does with a subject's pictures and its place: upload, click, paint, undo, and where it shall stand.

Part of the desk.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from customcontrast.errors import RequestError
from customcontrast.segmentation import check_stroke
from customcontrast.segmentation.brush import MAX_STROKES
from customcontrast.ui.handlers.messages import Changes, Set, notice, said
from customcontrast.ui.service import figures
from customcontrast.ui.service.recipe import MAX_REFERENCES
from customcontrast.ui.service.request import ADD, ANYWHERE, BOX, PLACES, REMOVE, Cut, place_box, read_place
from customcontrast.ui.service.service import Studio

THUMB = 160  # px, side of a small picture of a further reference
AREA = "box"  # what the page's choice of a place says where the box's numbers count
FIRST_AREA = "20, 25, 80, 100"  # the box that a visitor finds when one is asked for
PLACE_TITLES = {
    "": "Automatic",
    **{name: name.capitalize() for name in PLACES},
    AREA: "A box",
    ANYWHERE: "Anywhere",
}


class Cutting:
    """Handlers of a subject's slot. studio: see `Desk`."""

    studio: Studio

    def _cut(self, k: int, cut: Cut | None) -> Changes:
        picture = figures.cutout(cut) if cut else None
        return {
            f"cut{k}": cut,
            f"cutout{k}": picture,
            f"brush{k}": figures.data_url(picture) if picture else "",
            f"note{k}": notice(cut.trouble if cut else ""),
        }

    def _rest(self, k: int, rest: Sequence[Cut]) -> Changes:
        """The further pictures of the subject in slot k."""
        rest = tuple(rest)
        thumbs = [figures.thumbnail(cut, THUMB) for cut in rest]
        return {f"rest{k}": rest, f"others{k}": Set(value=thumbs, visible=bool(rest), selected_index=None)}

    # ---- pictures -----------------------------------------------------------------------------

    def upload(self, k: int, path: str | None) -> Changes:
        """A new picture for slot k, or none."""
        try:
            return self._cut(k, self.studio.cut(path) if path else None)
        except Exception as error:  # the broken picture goes, the sentence stays
            return {**self._cut(k, None), f"upload{k}": None, f"note{k}": notice(said(error), "error")}

    def another(self, k: int, cut: Cut | None, rest: Sequence[Cut] | None) -> Changes:
        """Put the picture of slot k aside, so that another one of the same subject can be given."""
        rest = tuple(rest or ())
        if cut is None:
            return {f"note{k}": notice("Give a picture first; then you can add another one of the same subject.")}
        if cut.current is None:
            return {f"note{k}": notice("Click on the subject in this picture first.")}
        if len(rest) + 1 >= MAX_REFERENCES:
            return {f"note{k}": notice(f"A subject takes at most {MAX_REFERENCES} pictures.")}
        return {f"upload{k}": None, **self._cut(k, None), **self._rest(k, (*rest, cut))}

    def swap(self, k: int, index: int, cut: Cut | None, rest: Sequence[Cut] | None) -> Changes:
        """Take a picture that was put aside back in hand; the one in hand takes its place."""
        rest = list(rest or ())
        if index not in range(len(rest)):
            return {}
        chosen = rest.pop(index)
        if cut is not None:
            rest.insert(index, cut)
        return {f"upload{k}": chosen.picture, **self._cut(k, chosen), **self._rest(k, rest)}

    # ---- corrections --------------------------------------------------------------------------

    def click(self, k: int, place: Sequence[int], cut: Cut | None, label: int) -> Changes:
        """A click at (x, y) on the cut-out, in pixels of the picture."""
        if cut is None:
            return self._cut(k, None)
        try:
            point = int(place[0]), int(place[1]), (REMOVE, ADD, BOX)[int(label)]
        except (TypeError, ValueError, IndexError, OverflowError):
            raise RequestError(
                "A click must be a place (x, y) in pixels of the cut-out: click on the picture."
            ) from None
        return self._cut(k, self.studio.clicked(cut, (*cut.points, point)))

    def stroke(self, k: int, drawn: Any, cut: Cut | None, label: int) -> Changes:
        """A stroke of the brush over the cut-out, as {path: [[x, y], …], radius} in pixels of the picture."""
        if cut is None:
            return {f"note{k}": notice("Give a picture first; then you can paint on its cut-out.")}
        if label == BOX:
            return {**self._cut(k, cut), f"note{k}": notice("Choose “Add” or “Remove” for the brush.")}
        if len(cut.strokes) >= MAX_STROKES:
            return {f"note{k}": notice(f"A picture takes at most {MAX_STROKES} strokes: press Reset to start again.")}
        if not isinstance(drawn, dict):
            raise RequestError("A stroke must have a path and a radius: paint on the cut-out.")
        path, radius = drawn.get("path"), drawn.get("radius")
        stroke = check_stroke(path, radius, label, cut.picture.size, after=len(cut.points))
        return self._cut(k, self.studio.painted(cut, (*cut.strokes, stroke)))

    def undo(self, k: int, cut: Cut | None) -> Changes:
        """Take back the last click or stroke."""
        return self._cut(k, self.studio.undone(cut) if cut else None)

    def reset(self, k: int, cut: Cut | None) -> Changes:
        """Take back all clicks and strokes."""
        return self._cut(k, self.studio.as_found(cut) if cut else None)

    # ---- place --------------------------------------------------------------------------------

    def _place(self, k: int, place: str) -> Changes:
        """A place as `read_place` spells it → the controls of slot k that say it."""
        choice, numbers = as_controls(place)
        area = Set(value=numbers, visible=True) if numbers else Set(visible=False)
        frame, title = figures.place_frame(place), Set(label=place_title(place))
        return {f"place{k}": choice, f"area{k}": area, f"frame{k}": frame, f"placing{k}": title}

    def choose_place(self, k: int, place: str, area: str) -> Changes:
        """Another choice of where subject k stands, or other numbers of its box."""
        if place == AREA and not str(area or "").strip():
            area = FIRST_AREA
        return {**self._place(k, read_place(area if place == AREA else place)), f"note{k}": notice("")}

    def draw_place(self, k: int, drawn: Any) -> Changes:
        """A box drawn into the frame, as {box: [left, top, right, bottom]} in percent."""
        box = drawn.get("box") if isinstance(drawn, dict) else None
        if not isinstance(box, list):
            raise RequestError("A place must be a box: draw it into the frame.")
        return {**self._place(k, read_place(", ".join(map(str, box)))), f"note{k}": notice("")}


def place_title(place: str) -> str:
    """The title of the folded control, which tells what is inside where that is not the default."""
    choice, _ = as_controls(place)
    return f"Where in the picture: {PLACE_TITLES[choice].lower()}" if choice else "Where in the picture"


def as_controls(place: str) -> tuple[str, str]:
    """A place as `read_place` spells it → the choice and the numbers of its box; the inverse of `chosen_place`."""
    boxed = place_box(place) is not None and place not in PLACES
    return (AREA, place) if boxed else (place, "")


def chosen_place(k: int, place: str | None, area: str | None) -> str:
    """What the controls of slot k say → a place for `read_place`. Raises RequestError."""
    if place != AREA:
        return place or ""
    if not str(area or "").strip():
        raise RequestError(f"Say where subject {k} stands: draw its box, or choose another place.")
    return area
