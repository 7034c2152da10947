"""One thread at a time makes modules.

diffusers and transformers read weights fast by patching torch for the whole process while a model is made:
`nn.Module.register_parameter` (accelerate's `init_empty_weights`) and the functions of `torch.nn.init`. A module that
another thread makes meanwhile gets no memory or no initial values, and two models read at once can leave a patch behind
for good. So whatever makes modules with weights is `alone` while it does.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

Given = ParamSpec("Given")
Made = TypeVar("Made")
BUILDING = threading.RLock()


def alone(make: Callable[Given, Made]) -> Callable[Given, Made]:
    """A function, or a module's `__init__`, that runs while no other thread makes modules."""

    @functools.wraps(make)
    def made(*args: Given.args, **options: Given.kwargs) -> Made:
        with BUILDING:
            return make(*args, **options)

    return made
