"""What a visitor does with the style picture, and on which bases there is one."""

from __future__ import annotations

from customcontrast.images.loading import load_picture, shown_by_browsers
from customcontrast.ui.handlers.messages import Changes, Set, error_text, notice
from customcontrast.ui.service.cutouts import MAX_SIDE
from customcontrast.ui.service.models import Models
from customcontrast.ui.service.request import STYLE, StyleRequest

LEFT_OUT = "Its style picture was left out: this model takes none; SD-1.5 and SDXL with a published IP-Adapter do."


class StylePanel:
    """Handlers of the slot “Style or layout”."""

    def __init__(self, models: Models) -> None:
        self.models = models

    def upload(self, path: str | None) -> Changes:
        """A new picture, or none; it is reduced as references are, so that recipes stay small and exact."""
        try:
            picture = load_picture(path, max_side=MAX_SIDE) if path else None
            preview = {} if not path or shown_by_browsers(path) else {"upload": picture}
            return {"picture": picture, "note": notice(""), **preview}
        except Exception as error:  # the broken picture goes, the sentence stays
            return {"picture": None, "upload": None, "note": notice(error_text(error), "error")}

    def filled(self, style: StyleRequest | None, base: str | None) -> Changes:
        """A recipe's style picture, or none, in the slot as this base has it."""
        shown = self.models.has_ip_adapter(base)
        given = style if shown else None
        return {
            "box": Set(visible=shown),
            "upload": given.picture if given else None,
            "picture": given.picture if given else None,
            "strength": given.strength if given else 1.0,
            "role": given.role if given else STYLE,
            "note": notice(""),
        }

    def shown(self, base: str) -> Changes:
        """The slot for another base; on one that takes no style picture it is emptied and out of sight."""
        return {"box": Set(visible=True)} if self.models.has_ip_adapter(base) else self.filled(None, base)
