"""One thread at a time makes modules.

diffusers and transformers read weights fast by patching torch for the whole process while a model is made:
`nn.Module.register_parameter` (accelerate's `init_empty_weights`) and the functions of `torch.nn.init`. A module that
another thread makes meanwhile gets no memory or no initial values, and two models read at once can leave a patch behind
for good. So whatever makes modules with weights holds BUILDING.
"""

from __future__ import annotations

import threading

BUILDING = threading.RLock()
