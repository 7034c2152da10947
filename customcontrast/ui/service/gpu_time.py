"""How long a request may hold a GPU that is lent by the call (ZeroGPU on Hugging Face Spaces)."""

from __future__ import annotations

from customcontrast.specs import BASES, DEFAULT_BASE
from customcontrast.ui.service.request import Request

START = 15.0  # seconds to move the weights to the GPU and look at the references
# Seconds of one denoising step of one picture at the base's own size, generously: a call that ends early costs only
# what it used, one that is cut off costs the picture. Not measured on Spaces' hardware.
STEP = {"sd15": 0.12, "sdxl": 0.5}
EMBEDDED_STEP = 0.05
LEAST, MOST = 20, 300  # seconds


def gpu_seconds(request: Request, preview_every: int = 0, base: str = DEFAULT_BASE) -> int:
    """Seconds of a GPU to request for one run of `Service.stream`, which has the first two arguments.

    base: the server's, for a request that names none. Grows with steps, pictures, the picture's area and, where each
    subject is drawn in a pass of its own, with them.
    """
    spec = BASES.get(request.base or base, BASES[DEFAULT_BASE])
    own_width, own_height = (int(side) for side in spec.sizes[0].split("x"))
    width, height = request.width_height or (own_width, own_height)
    passes = max(1, len(request.subjects)) if request.apart else 1
    area = width * height / (own_width * own_height)
    steps = (request.steps or spec.steps) * request.pictures * passes
    seconds = START + steps * area * STEP.get(spec.name, EMBEDDED_STEP)
    return round(min(max(seconds, LEAST), MOST))
