"""The sources of frames by name: Toyland, a rendered pool, a folder of your own, shards of photographs, or several."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from customcontrast.errors import ConfigError
from train.data.adapter_pool import Cache, PoolSource, build_pool, cache_features
from train.data.data_config import DataConfig
from train.data.folder import FolderSource
from train.data.mixture import Mixture, Part, Subset
from train.data.references import crop_size
from train.data.samples import Source
from train.data.shard_cache import ShardCache
from train.data.shards import ShardSource
from train.data.toyland_source import ToylandSource

if TYPE_CHECKING:
    from customcontrast.base_model import BaseModel

PHOTOGRAPHS = ("folder", "shards")  # sources of which some subjects can be held out; Toyland has subjects of its own


def make_source(config: DataConfig, base: BaseModel, progress: bool = True) -> Source | Mixture:
    """The source that `config` names, or a mixture of them; a pool is rendered and cached if it is not yet.

    Raises ConfigError where a folder cannot be used.
    """
    kinds = {own.shard_cache if own.source == "shards" else "none" for _, _, own in config.parts()}
    if len(kinds) > 1:
        raise ConfigError("data.sources: some parts have a shard_cache and some have none; give all of them the same")
    parts = [Part(name, _trained(own, base, progress), weight, own.captions) for name, weight, own in config.parts()]
    return parts[0].source if not config.sources else Mixture(parts)


def held_out_sources(config: DataConfig, base: BaseModel) -> list[Part]:
    """What `data.holdout` keeps from training, of each set of photographs that has any."""
    found = []
    for name, weight, own in config.parts():
        if own.source in PHOTOGRAPHS and own.holdout:
            whole = _whole(replace(own, shard_cache="none"), base, False)  # validation wants the pictures themselves
            kept = Subset.split(whole, own.holdout, validation=True)
            found += [Part(name, kept, weight, own.captions)] if len(kept) else []
    return found


def _trained(config: DataConfig, base: BaseModel, progress: bool) -> Source:
    source = _whole(config, base, progress)
    if config.source not in PHOTOGRAPHS:
        return source
    rest = Subset.split(source, config.holdout, validation=False)
    if not len(rest):
        raise ConfigError(f"data.holdout is {config.holdout}, which leaves no subject of {config.path}; lower it")
    return rest


def _shards(config: DataConfig, base: BaseModel, size: int, crop: int, progress: bool) -> ShardSource:
    source = ShardSource(Path(config.path), size, crop)
    if config.shard_cache != "none":
        cache = ShardCache.of(Path(config.path), source.index, base, config.shard_cache, size)
        try:
            cache.fill(source, base, progress)
        except OSError as error:
            raise ConfigError(f"data.shard_cache cannot be kept in {config.path} ({error}); set it to none") from error
        source.cache = cache
    return source


def _whole(config: DataConfig, base: BaseModel, progress: bool) -> Source:
    size, crop = config.size or base.default_size, crop_size(base)
    if config.source == "toyland":
        return ToylandSource(config, size, crop)
    if config.source == "folder":
        return FolderSource(Path(config.path), size, crop, progress)
    if config.source == "shards":
        return _shards(config, base, size, crop, progress)
    build_pool(config, size, crop, progress)
    cache = Cache.of(Path(config.path), base) if config.cache else None
    if cache is not None:
        cache_features(cache, config, base, progress)
    return PoolSource(Path(config.path), config, cache)
