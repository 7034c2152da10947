"""Settings of the data that an adapter trains on: one set of frames, or several."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

from customcontrast.errors import ConfigError
from train.common.config_values import at_least, build, number, one_of
from train.toyland import World


@dataclass(frozen=True)
class DataConfig:
    """Where frames of subjects come from and how samples are made of them (`train.data`)."""

    source: str = "pool"  # pool = Toyland rendered once; toyland = rendered on the fly; folder = your own pictures;
    # shards = photographs packed by `python -m train.data prepare`
    path: str = "runs/adapter-pool"  # folder of shards (pool, shards) or of your subjects, a sub-folder each (folder)
    world: str = "small"  # part of Toyland: a classmethod of train.toyland.World
    size: int = 0  # side of a target picture, px; 0 = the base's own
    reference_size: int = 160  # side at which reference frames are rendered before the subject is cut out, px
    subjects: int = 2000  # distinct subjects in the pool (pool), or before the source repeats (toyland)
    targets: int = 3  # frames of each subject that can be x, in every scene, style, shape and accessory
    references: int = 3  # frames of each subject that can be r or r⁺ (at least 2)
    same_frame: bool = False  # r is cut out of x itself, as where a subject has one picture; needs references = targets
    photographs: bool = False  # references of Toyland are distorted towards photographs (`train.data.augment`)
    captions: str = "given"  # given = as the source words them; noun = "a bear" alone, as of pictures without any
    drop: float = 0.05  # p of dropping the text, the subject, or both: each of the three
    drop_branch: float = 0.0  # p of leaving the subject to one branch: to the visual one (no S*), or to S* (λ = 0)
    workers: int = 0  # loader processes; 0 = load in the training process
    cache: bool = True  # cache the output of the frozen VAE and CLIP beside a pool's shards (16-bit)
    # Several sets in one run, each {name, weight, …}: its name, its share of the samples, and the fields of `data` that
    # it changes (source, path, …). A list has no hash; those of equal configurations are equal without it.
    sources: list[dict[str, Any]] = field(default_factory=list, hash=False)
    holdout: float = 0.0  # share of the subjects of folders and shards that validates, by hash of their ids
    shard_cache: str = "none"  # none, latents, clip or both: cached beside shards in 16 bits; latents fix x's crop

    def __post_init__(self) -> None:
        one_of("data", self, source=("pool", "toyland", "folder", "shards"), captions=("given", "noun"))
        one_of("data", self, shard_cache=("none", "latents", "clip", "both"))
        if self.references < 2:
            raise ConfigError(f"data.references is {self.references}; MACL needs r and another r⁺, so at least 2")
        if self.same_frame and (self.source != "pool" or self.references != self.targets):
            raise ConfigError(
                f"data.same_frame cuts r out of x: it needs data.source=pool, not {self.source!r}, and data.references "
                f"({self.references}) equal to data.targets ({self.targets})"
            )
        at_least("data", self, subjects=1, targets=1, reference_size=8, size=0, workers=0)
        if 0 < self.size < 8:
            raise ConfigError(f"data.size is {self.size}; it must be 8 or more, or 0 for the base's own")
        try:
            World.named(self.world)
        except ValueError as error:
            raise ConfigError(f"data.{error}") from None
        if not 0 <= self.holdout < 0.5:
            raise ConfigError(f"data.holdout is {self.holdout}; it must lie in [0, 0.5)")
        self.parts()
        if not 0 <= self.drop <= 1 / 3:
            raise ConfigError(f"data.drop is {self.drop}; three exclusive cases need 0 ≤ drop ≤ 1/3")
        if not self.drop_branch >= 0 or 3 * self.drop + 2 * self.drop_branch > 1:
            raise ConfigError(
                f"data.drop_branch is {self.drop_branch}; 3 · drop + 2 · drop_branch must lie between 0 and 1"
            )

    def parts(self) -> list[tuple[str, float, DataConfig]]:
        """(name, weight, settings) of each set of `sources`; one nameless part, these settings, where there are none.

        Raises ConfigError for a part that is no mapping, without a name of its own, or with a wrong field.
        """
        if not self.sources:
            return [("", 1.0, self)]
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)} | {"sources": []}
        found: list[tuple[str, float, DataConfig]] = []
        for i, given in enumerate(self.sources):
            where = f"data.sources[{i}]"
            if not isinstance(given, dict) or not isinstance(given.get("name"), str) or not given["name"]:
                raise ConfigError(f"{where} is {given!r}; write {{name: mvimgnet, source: shards, path: …, weight: 1}}")
            weight = number(given.get("weight", 1.0))
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
                raise ConfigError(f"{where}.weight is {weight!r}; it must be a number above 0")
            fields = {key: value for key, value in given.items() if key not in ("name", "weight")}
            found.append((given["name"], float(weight), build(DataConfig, plain | fields, where)))
        names = [name for name, _, _ in found]
        if len(set(names)) < len(names):
            raise ConfigError(f"data.sources are called {', '.join(names)}; give each a name of its own")
        return found
