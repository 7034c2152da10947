"""“Turn it around”: one subject seen from eight sides with the same seed, on a sheet and as a film."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from PIL import Image

from customcontrast import visualize
from customcontrast.errors import RequestError
from customcontrast.ui.handlers.comparison import in_turn
from customcontrast.ui.handlers.forms import GenerationForm, turn_text
from customcontrast.ui.handlers.generation_run import Generation
from customcontrast.ui.handlers.messages import Changes, Set, error_text, note, value_or_hidden
from customcontrast.ui.service import figures
from customcontrast.ui.service.request import Request
from customcontrast.ui.service.service import Service
from customcontrast.ui.service.view_layout import DIRECTIONS

TILE = 224  # px, of the sheet


def turned(request: Request) -> list[tuple[float, Request]]:
    """The request once for each direction, for its first subject alone; one picture each. Raises RequestError."""
    if not request.subjects:
        raise RequestError("There is no subject to turn around: give a picture of yours first.")
    first = request.subjects[0]
    pose = first.pose or "standing"  # with the pose open, it would change from view to view
    views = []
    for degrees in DIRECTIONS.values():
        subject = replace(first, azimuth=degrees, pose=pose)
        views.append((degrees, replace(request, subjects=(subject,), pictures=1)))
    return views


class Turntable:
    """Handlers of “Turn it around”. generation: its stream runs the requests, its folder takes the film."""

    def __init__(self, service: Service, generation: Generation) -> None:
        self.service = service
        self.generation = generation

    def turn(self, form: GenerationForm) -> Iterator[Changes]:
        """The controls → progress, then the sheet and the film of eight views."""
        try:
            request = form.request()
            requests = turned(request)
            if not self.service.models.takes_layout(request.base):
                raise RequestError("This model is not told how subjects are turned; choose Toyland 2.")
            yield {"status": note("Getting ready …"), "stop": Set(interactive=True)}
            for message in self.generation.loading(request.base):
                yield {"status": message}
            views: dict[float, Image.Image] = {}
            for degrees, image in in_turn(self.generation.stream, requests):
                if isinstance(image, str):
                    yield {"status": image}
                else:
                    views[degrees] = image
            labels = [turn_text(degrees) for degrees in views]
            sheet = visualize.contact_sheet(list(views.values()), labels, columns=4, tile=TILE, title=request.prompt)
            path = self.generation.folder() / "customcontrast-turned.gif"
            visualize.animation([figures.enlarged(image) for image in views.values()], path)
            yield {
                "turn_sheet": value_or_hidden(sheet),
                "turn_film": value_or_hidden(str(path)),
                "turn_gif": value_or_hidden(str(path)),
                "status": "",
                "stop": Set(interactive=False),
            }
        except Exception as error:
            yield {"status": note(error_text(error), "error"), "stop": Set(interactive=False)}
