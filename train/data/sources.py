"""The sources of frames by name: Toyland, a rendered pool, a folder of your own, shards of photographs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from train.data.adapter_pool import Cache, PoolSource, build_pool, cache_features
from train.data.folder import FolderSource
from train.data.references import crop_size
from train.data.samples import Source
from train.data.shards import ShardSource
from train.data.toyland_source import ToylandSource

if TYPE_CHECKING:
    from customcontrast.base_model import BaseModel
    from train.adapter.adapter_config import DataConfig


def make_source(config: DataConfig, base: BaseModel, progress: bool = True) -> Source:
    """The source that `config.source` names, ready to draw from; a pool is rendered and cached if it is not yet.

    Raises ConfigError where its folder cannot be used.
    """
    size, crop = config.size or base.default_size, crop_size(base)
    if config.source == "toyland":
        return ToylandSource(config, size, crop)
    if config.source == "folder":
        return FolderSource(Path(config.path), size, crop, progress)
    if config.source == "shards":
        return ShardSource(Path(config.path), size, crop)
    build_pool(config, size, crop, progress)
    cache = Cache.of(Path(config.path), base) if config.cache else None
    if cache is not None:
        cache_features(cache, config, base, progress)
    return PoolSource(Path(config.path), config, cache)
