"""diffusers' official callbacks → the settings of a run that do the same.

They rewrite tensors of diffusers' own loop after a step (`prompt_embeds`) and a private attribute. Here texts are
encoded for each layer and timestep, so what a callback asks for is set before the run instead: from which share of the
steps on there is no classifier-free guidance, or no λ.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from diffusers.callbacks import (
    IPAdapterScaleCutoffCallback,
    MultiPipelineCallbacks,
    PipelineCallback,
    SDCFGCutoffCallback,
    SDXLCFGCutoffCallback,
)

ENDS: dict[type, str] = {  # exactly these: a subclass may do anything
    SDCFGCutoffCallback: "guidance_end",
    SDXLCFGCutoffCallback: "guidance_end",
    IPAdapterScaleCutoffCallback: "subject_end",
}


@dataclass(frozen=True)
class Cutoffs:
    """What official callbacks ask for, and the callback that is left."""

    guidance_end: float = 1.0  # see `GenerationConfig`
    subject_end: float = 1.0  # … ; style and layout pictures, with a λ of their own, keep it
    others: Any = None


def cutoffs(given: Any, total: Callable[[], int]) -> Cutoffs:
    """Take the official callbacks out of `callback_on_step_end`. total: how many timesteps the run has."""
    every = list(given.callbacks) if isinstance(given, MultiPipelineCallbacks) else [given]
    known = [one for one in every if type(one) in ENDS]
    if not known:
        return Cutoffs(others=given)
    T, ends = total(), {"guidance_end": 1.0, "subject_end": 1.0}
    for one in known:
        index = one.config.cutoff_step_index
        last = int(T * one.config.cutoff_step_ratio) if index is None else index  # the last step as it was, from 0
        name = ENDS[type(one)]
        ends[name] = min(ends[name], (last + 1) / T)
    left = [one for one in every if type(one) not in ENDS]
    return Cutoffs(**ends, others=MultiPipelineCallbacks(left) if len(left) > 1 else next(iter(left), None))


def own_inputs(given: Any) -> bool:
    """Whether a callback names its tensors itself, as diffusers has it for its own classes."""
    return isinstance(given, PipelineCallback | MultiPipelineCallbacks)
