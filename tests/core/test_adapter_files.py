"""checkpoint: a round trip to the bit, metadata, and one sentence for every file that does not fit."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from customcontrast.adapter import FORMAT, Adapter, AdapterOutput
from customcontrast.adapter_files import load_adapter, read_metadata, save_adapter
from customcontrast.base_model import BaseModel
from customcontrast.errors import CheckpointError
from tests.support.tiny_models import random_adapter


@pytest.fixture
def saved(tiny_base: BaseModel, tmp_path: Path) -> Path:
    return save_adapter(random_adapter(tiny_base), tmp_path / "adapter.safetensors", step=1200)


def test_round_trip_to_the_bit(any_base: BaseModel, tmp_path: Path) -> None:
    adapter = random_adapter(any_base, sink=False)
    loaded = load_adapter(save_adapter(adapter, tmp_path / "deep" / "a.safetensors"), any_base)
    assert loaded.config == adapter.config
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in adapter.state_dict().items())
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    f_I, t = torch.randn(1, 30, 32), torch.tensor([1.0, 2.0])
    assert torch.equal(adapter.at(f_I, t).keys[0], loaded.at(f_I, t).keys[0])


def test_half_precision_on_disk_is_float_in_memory(tiny_base: BaseModel, tmp_path: Path) -> None:
    path = save_adapter(random_adapter(tiny_base), tmp_path / "a.safetensors", dtype=torch.float16)
    assert all(value.dtype == torch.float16 for value in load_file(path).values())
    assert all(p.dtype == torch.float32 for p in load_adapter(path, tiny_base).parameters())


def test_metadata_says_what_it_is(saved: Path, tiny_base: BaseModel) -> None:
    about = read_metadata(saved)
    assert about["base"] == "toyland" and about["step"] == 1200 and about["format"] == FORMAT
    assert about["ablation"] == {"textual": True, "tv_fusion": True, "sink": True}
    assert about["config"]["num_layers"] == 4 and isinstance(about["revision"], str)
    assert load_adapter(saved, tiny_base).metadata == about


def rewrite(path: Path, change: Callable[[dict, dict], None]) -> Path:
    """Save the file again with its weights or metadata changed."""
    weights, about = load_file(path), read_metadata(path)
    change(weights, about)
    save_file(weights, path, metadata={key: json.dumps(value) for key, value in about.items()})
    return path


BAD: dict[str, tuple[Callable[[dict, dict], object], str]] = {
    "missing": (
        lambda w, a: w.pop("attention.to_k.0.weight"),
        "lacks 1 weights, the first is 'attention.to_k.0.weight'",
    ),
    "unknown": (lambda w, a: w.update(extra=torch.zeros(1)), "1 unknown weights, the first is 'extra'"),
    "shape": (lambda w, a: w.update({"attention.null_key.2": torch.zeros(3)}), r"shape \(3,\); expected"),
    "base": (lambda w, a: a.update(base="sdxl"), "trained for base 'sdxl', not 'toyland'"),
    "layers": (lambda w, a: a["config"].update(num_layers=16), "num_layers=16; toyland has 4"),
    "width": (lambda w, a: a["config"].update(image_width=1024), "image_width=1024"),
    "field": (lambda w, a: a["config"].update(colour=1), "no field colour"),
    "format": (lambda w, a: a.update(format="other"), "not a CustomContrast adapter"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_does_not_fit_gets_one_sentence(saved: Path, tiny_base: BaseModel, what: str) -> None:
    change, sentence = BAD[what]
    with pytest.raises(CheckpointError, match=sentence) as caught:
        load_adapter(rewrite(saved, change), tiny_base)
    assert "\n" not in str(caught.value)


def test_pickle_and_rubbish_are_refused(tiny_base: BaseModel, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple:
            return (pytest.fail, ("a pickle was executed",))

    for name, data in (("a.pt", pickle.dumps(Bomb())), ("a.safetensors", pickle.dumps(Bomb())), ("b.safetensors", b"")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(CheckpointError, match=r"refused|cannot be read"):
            load_adapter(tmp_path / name, tiny_base)
    with pytest.raises(CheckpointError, match="no file"):
        load_adapter(tmp_path / "none.safetensors", tiny_base)
    with pytest.raises(CheckpointError, match=r"end in .safetensors"):
        save_adapter(random_adapter(tiny_base), tmp_path / "a.bin")


def test_safetensors_of_something_else(tiny_base: BaseModel, tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors", metadata={"note": "hello"})
    with pytest.raises(CheckpointError, match=r"cannot be read|not a CustomContrast adapter"):
        load_adapter(tmp_path / "x.safetensors", tiny_base)
    save_file({"x": torch.zeros(1)}, tmp_path / "y.safetensors")
    with pytest.raises(CheckpointError, match="not a CustomContrast adapter"):
        load_adapter(tmp_path / "y.safetensors", tiny_base)


def test_rows_and_cat_are_inverse(any_base: BaseModel) -> None:
    adapter = random_adapter(any_base)
    out = adapter.at(torch.randn(1, 30, 32), torch.tensor([1.0, 5.0, 9.0]))
    again = AdapterOutput.cat([out.row(i) for i in range(3)])
    assert all(torch.equal(a, b) for a, b in zip(out.keys + out.values, again.keys + again.values, strict=True))
    assert torch.equal(out.mfi.text_cls, again.mfi.text_cls)


def test_the_adapter_holds_nothing_frozen(any_base: BaseModel) -> None:
    adapter = Adapter.create(any_base, width=32, heads=2, depth=1)
    assert all(parameter.requires_grad for parameter in adapter.parameters())
    assert {name.split(".")[0] for name, _ in adapter.named_parameters()} == {"encoder", "attention"}
