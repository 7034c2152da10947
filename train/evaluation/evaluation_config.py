"""Settings of `python -m train.evaluation adapter`: on what an adapter is evaluated, and who judges."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from customcontrast.config import GenerationConfig
from train.evaluation.metrics import DINO


@dataclass(frozen=True)
class EvaluationConfig:
    """All settings of one evaluation; each field is the command's option of its name, with its default.

    Raises ValueError where `grounding` names one model of the two.
    """

    base: str = "toyland"  # one of customcontrast.specs.BASES
    weights: str | None = None  # folder or hub id of the base; None = its own
    adapter: Path | None = None  # adapter file; None = the one beside the base's weights
    benchmark: str = "toyland"  # toyland, or a folder with a sub-folder per subject
    limit: int | None = None  # subjects, 1 or more; None = all of a folder, `evaluate.TOYLAND` of Toyland
    prompts: Path | None = None  # a folder's prompts (`tasks.read_prompts`); None = one of each category of tasks.EDITS
    references: str = "plain"  # Toyland's: plain = portraits; edited = in a style and shape and wearing something
    whole_references: bool = False  # a method is shown the whole picture, as IP-Adapter's authors do, not the cut-out
    location_masks: bool = True  # False = subjects are not located (section 3.4), as in published IP-Adapters
    world: str = "small"  # part of Toyland: a classmethod of train.toyland.World
    readers: Path | None = None  # Toyland's judges (`train.evaluation.readers`); None = those of the base's world
    attributes: Path | None = None  # who sees edits (`train.evaluation.attribute_reader`); None = the same
    clip: str | None = None  # CT and CI of real pictures, hub id or folder; on Toyland CT and edits, a `clip_judge`
    dino: str = DINO  # DI of real pictures: hub id or folder
    reward: str | None = None  # IR of real pictures: ImageReward-v1.0 or a checkpoint file; None = not requested
    grounding: tuple[str, ...] = ()  # a Grounding DINO and a SAM that find subjects in real pictures; () = Segmenter
    steps: int | None = None  # denoising steps; None = the base's own
    guidance: float | None = None  # guidance scale; None = the base's own
    guidance_end: float | None = None  # share of the steps after which there is no guidance; None = the base's own
    subject_guidance: float | None = None  # scale of the guidance on subjects; None = the base's own
    subject_guidance_end: float | None = None  # share of the steps with it; None = the base's own
    subject_scale: float = 1.0  # λ of Eq. 3
    seed: int = 0  # of the benchmark and, without `seeds`, of every picture's noise
    seeds: tuple[int, ...] = ()  # several pictures of each prompt, one a seed; () = `seed` alone
    floor: Path | None = None  # folder of the pictures from text alone, which runs can share; None = one in `out`
    out: Path = Path("runs/evaluation")  # folder of the report

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"--limit {self.limit}: give 1 subject or more")
        for seed in self.picture_seeds:  # raises before anything is loaded
            GenerationConfig("", seed=seed, **self.sampling)
        if len(self.grounding) not in (0, 2):
            raise ValueError(f"--grounding {' '.join(self.grounding)}: give a Grounding DINO and a SAM, or neither")

    @property
    def sampling(self) -> dict[str, Any]:
        """How pictures are drawn, as `CustomContrast.generate` takes it."""
        return {
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance,
            "guidance_end": self.guidance_end,
            "subject_guidance_scale": self.subject_guidance,
            "subject_guidance_end": self.subject_guidance_end,
            "subject_scale": self.subject_scale,
        }

    @property
    def picture_seeds(self) -> list[int]:
        """The seeds of the pictures' noise: `seeds`, each once, where there are several, else `seed`."""
        return list(dict.fromkeys(self.seeds or (self.seed,)))
