"""What a run starts from: an untrained adapter, or a published IP-Adapter in its visual branch (`init`)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from customcontrast.adapter import Adapter
from customcontrast.base_model import BaseModel, encoder_config, load_base
from customcontrast.errors import CheckpointError, ConfigError, HubError
from customcontrast.hub import adapter_file, is_folder, is_ip_adapter
from customcontrast.ip_adapter import IPAdapterConfig, read_config
from customcontrast.specs import BASES
from customcontrast.warm_start import WarmAdapter, checked, sizes_in
from train.adapter.adapter_config import AdapterTrainConfig

WEIGHTS = "weights."  # of the adapter's tensors in a checkpoint


@dataclass(frozen=True)
class Start:
    """Where the adapter's first weights come from. The published file is read for step 0 alone."""

    config: AdapterTrainConfig
    file: Path | None = None  # the published file; None = none, or a checkpoint has what it said
    sizes: IPAdapterConfig | None = None  # of the IP-Adapter in the visual branch; None = there is none

    @classmethod
    def of(cls, config: AdapterTrainConfig, checkpoint: Path | None) -> Start:
        """Find the file that `config.init` names, or what the checkpoint holds of it. Raises ConfigError."""
        if not config.init:
            return cls(config)
        if checkpoint is not None:
            return cls(config, sizes=_sizes_in_checkpoint(checkpoint))
        try:
            file = adapter_file(config.init, config.base)
            if not file.is_file():
                raise CheckpointError(f"there is no file {config.init!r}, and no published adapter of that name.")
            if not is_ip_adapter(file):
                raise CheckpointError(f"{file.name} is no published IP-Adapter; give one, such as ip-adapter-plus.")
            return cls(config, file, checked(read_config(file)[0], file.name))
        except (CheckpointError, HubError) as error:
            raise ConfigError(f"config: init cannot be used: {error}") from error

    def base(self, device: torch.device, dtype: torch.dtype) -> BaseModel:
        """The frozen base, with the image encoder that the configuration or the published file asks for."""
        c = self.config
        encoder = c.image_encoder or None
        own = is_folder(Path(c.weights or BASES[c.base].weights if c.base in BASES else "") / "image_encoder")
        if encoder is None and self.sizes is not None and not own:
            encoder = self.sizes.image_encoder
        base = load_base(c.base, c.weights, device, dtype, encoder)
        return base if self.sizes is None else replace(base, penultimate=True)

    def adapter(self, base: BaseModel) -> Adapter:
        """The adapter before its first step, float32, to be trained; `base` is from above. Raises ConfigError."""
        try:
            if self.sizes is None:
                return Adapter.create(base, **self.config.encoder).float().train()
            if self.file is not None:
                return WarmAdapter.from_file(base, self.file, **self.config.encoder).float().train()
            sizes, encoder = self.sizes, encoder_config(base, **self.config.encoder)
            adapter = WarmAdapter(encoder, base.cross_attention_layers, base.name, sizes).to(base.device)
            adapter.image_encoder = base.encoder_id
            return adapter.sees_nothing(base).float().train()
        except CheckpointError as error:
            raise ConfigError(f"config: init cannot be used: {error}") from error
        except ValueError as error:
            raise ConfigError(f"config: encoder cannot be used: {error}") from error


def _sizes_in_checkpoint(path: Path) -> IPAdapterConfig | None:
    """Sizes of the IP-Adapter in a checkpoint; None where there is none, or where `load` will say what is wrong."""
    try:
        with safe_open(str(path), "pt") as file:
            names = [name for name in file.keys() if name.startswith(WEIGHTS)]  # noqa: SIM118 - not a dict
            shapes = {name.removeprefix(WEIGHTS): file.get_slice(name).get_shape() for name in names}
        return sizes_in(shapes, path.name)
    except (SafetensorError, OSError, ValueError):
        return None
