"""What a visitor does with the subjects: upload, click, paint, undo, name, place, and one more of them.

Handlers of one slot speak of its parts by name (`cut`, `note`, …); those of all slots nest them under its number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from customcontrast.config import MAX_SUBJECTS
from customcontrast.errors import RequestError
from customcontrast.images.cropping import Box, find_faces, widened
from customcontrast.images.loading import shown_by_browsers
from customcontrast.segmentation import check_stroke
from customcontrast.segmentation.brush import MAX_STROKES
from customcontrast.ui.handlers.forms import AREA, SubjectForm, as_controls
from customcontrast.ui.handlers.messages import Changes, Set, error_text, notice
from customcontrast.ui.service import figures
from customcontrast.ui.service.cutouts import ADD, BOX, REMOVE, CutOut, around
from customcontrast.ui.service.phrases import noun_from_name
from customcontrast.ui.service.recipe import MAX_REFERENCES
from customcontrast.ui.service.request import ANYWHERE, PLACES, read_place
from customcontrast.ui.service.service import Service

SLOTS = range(1, MAX_SUBJECTS + 1)
THUMB = 160  # px, side of a small picture of a further reference
FIRST_AREA = "20, 25, 80, 100"  # the box that a visitor finds when one is requested
PLACE_TITLES = {
    "": "Automatic",
    **{name: name.capitalize() for name in PLACES},
    AREA: "A box",
    ANYWHERE: "Anywhere",
}
FACE_MARGIN = 0.45  # on each side of a face, as a share of it: hair and chin belong to it
NO_PICTURE = "Give a picture first; then you can"


class SubjectPanel:
    """Handlers of the subjects' slots.

    examples: pictures of subjects that come with the page. folder: makes a new folder for the files of one answer.
    """

    def __init__(self, service: Service, examples: Sequence[Path], folder: Callable[[], Path]) -> None:
        self.service = service
        self.examples = tuple(examples)
        self.folder = folder

    # ---- all slots ----------------------------------------------------------------------------

    def counted(self, count: int) -> Changes:
        """So many slots on view."""
        shown = {k: {"box": Set(visible=k <= count)} for k in SLOTS}
        return {"count": count, "add": Set(visible=count < MAX_SUBJECTS), "slots": shown}

    def add(self, count: int) -> Changes:
        """One more slot."""
        return self.counted(min(count + 1, MAX_SUBJECTS))

    def remove(self, k: int, count: int, subjects: Sequence[SubjectForm]) -> Changes:
        """Slot k goes, those after it move up."""
        return self.filled([*subjects[: k - 1], *subjects[k:]], max(1, count - 1))

    def filled(self, forms: Sequence[SubjectForm], count: int | None = None) -> Changes:
        """These subjects into the slots; the others are emptied. count: slots on view, None = as many as subjects."""
        changes = self.counted(max(1, len(forms)) if count is None else count)
        for k in SLOTS:
            changes["slots"][k] |= self.slot(forms[k - 1] if k <= len(forms) else SubjectForm())
        return changes

    def example(self, index: int, count: int, subjects: Sequence[SubjectForm]) -> Changes:
        """An example goes into the first empty slot, or else into the last."""
        k = next((k for k in SLOTS[:count] if subjects[k - 1].cut is None), count)
        path = self.examples[index]
        return {"slots": {k: self.slot_of_file(path)}}

    def slot_of_file(self, path: Path) -> Changes:
        """A picture of ours in a slot, with its word."""
        cut = self.service.cutouts.open(path)
        return {"upload": str(path), "noun": noun_from_name(path), **self.cut_changes(cut), **self.other_changes(())}

    # ---- one slot -----------------------------------------------------------------------------

    def slot(self, form: SubjectForm) -> Changes:
        """Everything that a slot holds."""
        place = _readable(form.area if form.place == AREA else form.place)
        return {
            "upload": form.cut.picture if form.cut else None,
            "noun": form.noun,
            "strength": form.strength,
            "turn": form.turn or "",
            "pose": form.pose or "",
            **self.cut_changes(form.cut),
            **self.other_changes(form.others or ()),
            **place_changes(place),
        }

    def cut_changes(self, cut: CutOut | None) -> Changes:
        """The picture in hand, as the slot shows it."""
        picture = figures.cutout(cut) if cut else None
        return {
            "cut": cut,
            "cutout": picture,
            "brush": figures.data_url(picture) if picture else "",
            "note": notice(cut.trouble if cut else ""),
        }

    def other_changes(self, others: Sequence[CutOut]) -> Changes:
        """The further pictures of the subject."""
        thumbs = [figures.thumbnail(cut, THUMB) for cut in others]
        shown = Set(value=thumbs, visible=bool(thumbs), selected_index=None)
        return {"others": tuple(others), "album": shown}

    def upload(self, path: str | None) -> Changes:
        """A new picture, or none."""
        try:
            cut = self.service.cutouts.open(path) if path else None
            return {**self.cut_changes(cut), **self._preview(path, cut)}
        except Exception as error:  # the broken picture goes, the sentence stays
            return {**self.cut_changes(None), "upload": None, "note": notice(error_text(error), "error")}

    def _preview(self, path: str | None, cut: CutOut | None) -> Changes:
        """A picture that browsers do not show, as a PNG; it keeps its name, which the noun is guessed from."""
        if not path or cut is None or shown_by_browsers(path):
            return {}
        file = self.folder() / f"{Path(path).stem}.png"
        cut.picture.save(file)
        return {"upload": str(file)}

    def guess(self, path: str | None, cut: CutOut | None, noun: str, base: str | None) -> Changes:
        """A word for a picture that was just given, where the visitor has not written one; "" = none."""
        if not path or cut is None or (noun or "").strip():
            return {"guessed": ""}
        guess = self.service.nouns.guess(cut.current, path, base)
        changes: Changes = {"guessed": guess.noun}
        if not guess.noun:
            return changes
        if not guess.sure:
            perhaps = f" Or is it a {' or a '.join(guess.others)}?" if guess.others else ""
            text = f"Is this a {guess.noun}? That is a guess: correct the word if it is something else.{perhaps}"
            changes["note"] = notice(text, "")
        return changes

    def another(self, cut: CutOut | None, others: Sequence[CutOut] | None) -> Changes:
        """Put the picture in hand aside, so that another one of the same subject can be given."""
        others = tuple(others or ())
        if cut is None:
            return {"note": notice(f"{NO_PICTURE} add another one of the same subject.")}
        if cut.current is None:
            return {"note": notice("Click on the subject in this picture first.")}
        if len(others) + 1 >= MAX_REFERENCES:
            return {"note": notice(f"A subject takes at most {MAX_REFERENCES} pictures.")}
        return {"upload": None, **self.cut_changes(None), **self.other_changes((*others, cut))}

    def swap(self, index: int, cut: CutOut | None, others: Sequence[CutOut] | None) -> Changes:
        """Take a picture that was put aside back in hand; the one in hand takes its place."""
        others = list(others or ())
        if index not in range(len(others)):
            return {}
        chosen = others.pop(index)
        if cut is not None:
            others.insert(index, cut)
        return {"upload": chosen.picture, **self.cut_changes(chosen), **self.other_changes(others)}

    # ---- corrections --------------------------------------------------------------------------

    def click(self, place: Sequence[int], cut: CutOut | None, label: int) -> Changes:
        """A click at (x, y) on the cut-out, in pixels of the picture."""
        if cut is None:
            return self.cut_changes(None)
        try:
            point = int(place[0]), int(place[1]), {REMOVE: REMOVE, ADD: ADD, BOX: BOX}[label]
        except (TypeError, ValueError, IndexError, KeyError, OverflowError):
            raise RequestError(
                "A click must be a place (x, y) in pixels of the cut-out that adds, removes or begins a box: "
                "click on the picture."
            ) from None
        return self.cut_changes(self.service.cutouts.clicked(cut, (*cut.points, point)))

    def stroke(self, drawn: Any, cut: CutOut | None, label: int) -> Changes:
        """A stroke of the brush over the cut-out, as {path: [[x, y], …], radius} in pixels of the picture."""
        if cut is None:
            return {"note": notice(f"{NO_PICTURE} paint on its cut-out.")}
        if label == BOX:
            return {**self.cut_changes(cut), "note": notice("Choose “Add” or “Remove” for the brush.")}
        if len(cut.strokes) >= MAX_STROKES:
            return {"note": notice(f"A picture takes at most {MAX_STROKES} strokes: press Reset to start again.")}
        if not isinstance(drawn, dict):
            raise RequestError("A stroke must have a path and a radius: paint on the cut-out.")
        path, radius = drawn.get("path"), drawn.get("radius")
        stroke = check_stroke(path, radius, label, cut.picture.size, after=len(cut.points))
        return self.cut_changes(self.service.cutouts.painted(cut, (*cut.strokes, stroke)))

    def undo(self, cut: CutOut | None) -> Changes:
        """Take back the last click or stroke."""
        return self._instead(cut, self.service.cutouts.undone(cut) if cut else None)

    def reset(self, cut: CutOut | None) -> Changes:
        """Take back all clicks, strokes and crops."""
        return self._instead(cut, self.service.cutouts.as_found(cut) if cut else None)

    def crop(self, cut: CutOut | None) -> Changes:
        """Crop the picture to the box that was clicked, or else to its subject."""
        if cut is None:
            return {"note": notice(f"{NO_PICTURE} crop it.")}
        box = cut.box or (around(cut.current) if cut.current else None)
        if box is None:
            return {"note": notice("Choose “Box” and click two corners, or click on the subject first.")}
        return self._cropped(cut, box)

    def crop_face(self, cut: CutOut | None) -> Changes:
        """Crop the picture to the largest face in it."""
        if cut is None:
            return {"note": notice(f"{NO_PICTURE} crop it.")}
        faces = find_faces(cut.picture)
        if not faces:
            text = "No face was found in this picture: choose “Box”, click two corners of it and press Crop."
            return {"note": notice(text)}
        return self._cropped(cut, widened(faces[0], FACE_MARGIN, cut.picture.size))

    def _cropped(self, cut: CutOut, box: Box) -> Changes:
        after = self.service.cutouts.cropped(cut, box)
        if after is cut:
            return {"note": notice("There is nothing to crop: the picture ends there already.", "")}
        return self._instead(cut, after)

    def _instead(self, before: CutOut | None, after: CutOut | None) -> Changes:
        """Another cut-out; where its picture is another one, that goes into the upload too."""
        other = before is not None and after is not None and after.picture is not before.picture
        return {**({"upload": after.picture} if other and after else {}), **self.cut_changes(after)}

    # ---- place --------------------------------------------------------------------------------

    def choose_place(self, place: str, area: str) -> Changes:
        """Another choice of where the subject stands, or other numbers of its box."""
        if place == AREA and not str(area or "").strip():
            area = FIRST_AREA
        return {**place_changes(read_place(area if place == AREA else place)), "note": notice("")}

    def draw_place(self, drawn: Any) -> Changes:
        """A box drawn into the frame, as {box: [left, top, right, bottom]} in percent."""
        box = drawn.get("box") if isinstance(drawn, dict) else None
        if not isinstance(box, list):
            raise RequestError("A place must be a box: draw it into the frame.")
        return {**place_changes(read_place(", ".join(map(str, box)))), "note": notice("")}


def place_changes(place: str) -> Changes:
    """A place as `read_place` spells it → the controls that say it."""
    choice, numbers = as_controls(place)
    area = Set(value=numbers, visible=True) if numbers else Set(visible=False)
    return {
        "place": choice,
        "area": area,
        "frame": figures.place_frame(place),
        "placing": Set(label=place_title(place)),
    }


def place_title(place: str) -> str:
    """The title of the folded control, which tells what is inside where that is not the default."""
    choice, _ = as_controls(place)
    return f"Where in the picture: {PLACE_TITLES[choice].lower()}" if choice else "Where in the picture"


def _readable(place: str | None) -> str:
    """A place as it can be shown: what a visitor typed wrongly is left out."""
    try:
        return read_place(place)
    except RequestError:
        return ""
