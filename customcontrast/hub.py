"""Names of published weights -> files on this machine: from Hugging Face's cache, or downloaded into it once.

Only safetensors are taken, and of every repository only the files that are read: half-precision weights where the run
is in half precision and there are any. What is in the cache (HF_HOME, HF_HUB_CACHE) is used without the network,
and HF_HUB_OFFLINE is honoured. Published files with a known digest are checked after their download.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from customcontrast.errors import HubError

__all__ = [
    "ADAPTERS",
    "NAMES",
    "HubError",
    "Published",
    "adapter_file",
    "encoder_folder",
    "fp16_only",
    "in_cache",
    "is_file",
    "is_folder",
    "is_ip_adapter",
    "is_name",
    "means_ip_adapter",
    "pipeline_folder",
    "safety_folder",
]

log = logging.getLogger(__name__)

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_HUB_PATH = re.compile(rf"({HUB_ID.pattern}):([\w.-]+(?:/[\w.-]+)*)")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_WEIGHTS = re.compile(r"(?:diffusion_pytorch_model|model)(\.fp16)?(?:-(\d+)-of-(\d+))?(\.fp16)?\.safetensors")
_SETTINGS = re.compile(r"[^/]+\.(?:json|txt|model)")  # configs, tokenizers, indices of shards


@dataclass(frozen=True)
class Published:
    """A file on the hub, and how it is known again. size and digest are those of its Git LFS pointer there."""

    repo: str
    path: str
    size: int  # bytes
    sha256: str


_H94 = (  # of the repository h94/IP-Adapter: name, base, bytes, SHA-256
    ("ip-adapter-plus", "sd15", 98_183_288, "a1c250be40455cc61a43da1201ec3f1edaea71214865fb47f57927e06cbe4996"),
    ("ip-adapter-plus", "sdxl", 847_517_512, "3f5062b8400c94b7159665b21ba5c62acdcd7682262743d7f2aefedef00e6581"),
    ("ip-adapter-plus-face", "sd15", 98_183_288, "1c9edc21af6f737dc1d6e0e734190e976cfacf802d6b024b77aa3be922f7569b"),
    ("ip-adapter-plus-face", "sdxl", 847_517_512, "677ad8860204f7d0bfba12d29e6c31ded9beefdf3e4bbd102518357d31a292c1"),
    ("ip-adapter", "sd15", 44_642_768, "289b45f16d043d0bf542e45831f971dcdaabe18b656f11e86d9dfba7e9ee3369"),
    ("ip-adapter", "sdxl", 698_391_064, "ebf05d918348aec7abb02a5e9ecef77e0aaea6914a5c4ea13f50d45eb1681831"),
    ("ip-adapter-light", "sd15", 44_642_768, "0747d08db670535bfa286452a77d93cebad5c677b46d038543f9f2de8690bb26"),
    ("ip-adapter-full-face", "sd15", 43_592_352, "f4a17fb643bf876235a45a0e87a49da2855be6584b28ca04c62a97ab5ff1c6f3"),
)


def _h94_path(name: str, base: str) -> str:
    """Path in that repository, which names a file after adapter, base and, for SDXL, its image encoder."""
    if base == "sdxl":
        return f"sdxl_models/{name}_sdxl_vit-h.safetensors"
    stem = f"{name.removesuffix('-light')}_sd15{'_light' if name.endswith('-light') else ''}"
    return f"models/{stem}.safetensors"


# (name, base) -> file. All are Apache-2.0 and read OpenCLIP ViT-H/14.
ADAPTERS: dict[tuple[str, str], Published] = {
    (name, base): Published("h94/IP-Adapter", _h94_path(name, base), size, sha256) for name, base, size, sha256 in _H94
}
NAMES = tuple(dict.fromkeys(name for name, _ in ADAPTERS))
SAFETY = ("stable-diffusion-v1-5/stable-diffusion-v1-5", "safety_checker")  # repository and folder of the checker


def is_file(source: str | Path) -> bool:
    """Whether this is a file here; False for what no file system takes as a name."""
    try:
        return Path(source).is_file()
    except (OSError, ValueError):
        return False


def is_folder(source: str | Path) -> bool:
    """Whether this is a folder here; False for what no file system takes as a name."""
    try:
        return Path(source).is_dir()
    except (OSError, ValueError):
        return False


def is_name(source: str) -> bool:
    """Whether this names an adapter of the hub (`adapter_file`), not a file here."""
    return source in NAMES or _HUB_PATH.fullmatch(source) is not None


def is_ip_adapter(path: Path) -> bool:
    """Whether a safetensors file has the published layout of an IP-Adapter; False for what cannot be read."""
    try:
        with safe_open(str(path), framework="np") as file:
            return any(key.startswith(("ip_adapter.", "image_proj.")) for key in file.keys())  # noqa: SIM118
    except (SafetensorError, OSError, ValueError):
        return False


def means_ip_adapter(source: str | Path) -> bool:
    """Whether an adapter's name or file is an IP-Adapter's, without fetching it.

    A file of the hub that is not in the cache counts as one: nothing else is published there.
    """
    text = str(source)
    if text in NAMES or is_file(text):
        return text in NAMES or is_ip_adapter(Path(text))
    match = _HUB_PATH.fullmatch(text)
    if match is None:
        return False
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(match[1], match[2])
    return is_ip_adapter(Path(cached)) if isinstance(cached, str) else True


def in_cache(repo: str) -> bool:
    """Whether a pipeline of the hub is in the cache, as far as a look at its index can tell."""
    folder = _cached(repo)
    return folder is not None and (folder / "model_index.json").is_file()


def adapter_file(source: str | Path, base: str) -> Path:
    """An adapter's file: a name of ADAPTERS, "owner/name:path/in/it.safetensors", or a file on this machine.

    base: which base model it is for, where the name leaves that open. A path that does not exist comes back as it is.
    Raises HubError with one sentence.
    """
    text = str(source)
    if text in NAMES:
        if (text, base) not in ADAPTERS:
            bases = " and ".join(b for name, b in ADAPTERS if name == text)
            raise HubError(f"adapter={text!r} is published for {bases}, not for {base!r}; choose another one.")
        published = ADAPTERS[text, base]
        return _download(published.repo, published.path, published)
    if text.endswith(_PICKLES):
        raise HubError(f"adapter={text!r} is a pickle, which may run code; take the .safetensors file of that name.")
    match = None if is_file(text) else _HUB_PATH.fullmatch(text)
    if match is None:
        return Path(source)
    if not text.endswith(".safetensors"):
        raise HubError(f"adapter={text!r} names no .safetensors file; other formats are refused.")
    known = (p for p in ADAPTERS.values() if (p.repo, p.path) == match.groups())
    return _download(match[1], match[2], next(known, None))


def encoder_folder(source: str | Path, half: bool = False) -> Path:
    """The folder of an image encoder: "owner/name:folder", "owner/name", or a folder on this machine.

    half: take half-precision weights where there are any. Raises HubError with one sentence.
    """
    text = str(source)
    if is_folder(text):
        return Path(text)
    match = _HUB_PATH.fullmatch(text)
    if match is None and not HUB_ID.fullmatch(text):
        raise HubError(
            f"image_encoder={text[:100]!r} is no folder here; give a folder, 'owner/name', or 'owner/name:folder'."
        )
    repo, folder = match.groups() if match else (text, "")
    return _folder(repo, {folder: True}, half) / folder


def pipeline_folder(repo: str, weights: Iterable[str], settings: Iterable[str], half: bool = False) -> Path:
    """A diffusers pipeline of the hub as a folder on this machine.

    weights: its folders with weights that are read; settings: those with configs alone. Its image encoder comes along
    where it brings one. half: see `encoder_folder`. Raises HubError with one sentence.
    """
    return _folder(repo, dict.fromkeys(weights, True) | dict.fromkeys(settings, False), half, "image_encoder")


def safety_folder(source: str | Path = "on", weights: str | Path = "") -> Path:
    """The folder of the safety checker, complete: config.json and safetensors.

    source: "on" = that beside the base's `weights`, if they are a folder that has one, else the published one; or a
    folder here, "owner/name", or "owner/name:folder". Its half-precision file is taken everywhere. Raises HubError with
    one sentence.
    """
    text, (repo, part) = str(source), SAFETY
    given = Path(weights) / part if text == "on" else Path(text)
    if is_folder(given) and (text != "on" or str(weights)):
        folder = given / part if is_folder(given / part) else given
        if _required(_names(folder), {"": True}, half=True) is None:
            raise HubError(
                f"safety_checker: {str(folder)!r} lacks config.json or model.safetensors; put those of "
                f"https://huggingface.co/{repo}, folder {part}, there."
            )
        return folder
    if text != "on":
        match = _HUB_PATH.fullmatch(text)
        if match is None and not HUB_ID.fullmatch(text):
            raise HubError(
                f"safety_checker={text[:100]!r} is no folder here; give 'on', 'off', a folder, 'owner/name', or "
                "'owner/name:folder'."
            )
        repo, part = match.groups() if match else (text, "")
    names = [f"{part}/{name}" if part else name for name in ("config.json", "model.fp16.safetensors")]
    remedy = "their folder (--safety-checker FOLDER; safety_checker=FOLDER in Python), or off to go without a checker"
    return _folder(repo, {part: True}, True, named=names, remedy=remedy) / part


def fp16_only(folder: Path, half: bool) -> bool:
    """Whether a folder's weights are read from its half-precision files: requested, or nothing else is there."""
    chosen = _chosen_weights([file.name for file in folder.glob("*.safetensors")], half)
    return any(".fp16" in name for name in chosen)


def _download(repo: str, path: str, published: Published | None) -> Path:
    """One file, from the cache or the network; a fresh one is checked against its digest."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    cached = try_to_load_from_cache(repo, path)
    fresh = not isinstance(cached, str)
    known = cached if isinstance(cached, str) else ""
    if fresh:
        log.info("fetching %s of %s%s", path, repo, f" ({published.size / 1e6:.0f} MB)" if published else "")
    try:
        file = Path(hf_hub_download(repo, path)) if fresh else Path(known)
    except Exception as error:  # the client has a dozen kinds, some of them those of its transport
        size = f" ({published.size:,} bytes)" if published else ""
        raise _unreachable(error, repo, [path], f"adapter=FILE with that file{size}") from error
    if published is not None:
        bytes_here = file.stat().st_size
        wrong = bytes_here != published.size or (fresh and _digest(file) != published.sha256)
        if wrong:
            file.resolve().unlink(missing_ok=True)
            file.unlink(missing_ok=True)
            raise HubError(
                f"{path} of {repo} is not the published file ({bytes_here:,} bytes of {published.size:,}, or another "
                "content) and was removed from the cache; start again to download it once more."
            )
    return file


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _folder(
    repo: str,
    parts: dict[str, bool],
    half: bool,
    extra: str = "",
    named: Sequence[str] = (),
    remedy: str = "the folder that holds them",
) -> Path:
    """The snapshot of a repository with these folders (-> whether they hold weights) complete.

    extra: a folder with weights that is fetched where the repository has it. named, remedy: what a failure says to
    download, and to pass.
    """
    from huggingface_hub import HfApi, snapshot_download

    folder = _cached(repo)
    if folder is not None and _required(_names(folder), parts, half) is not None:
        return folder
    try:
        names = HfApi().list_repo_files(repo)
        if extra and any(name.startswith(f"{extra}/") for name in names):
            parts = parts | {extra: True, "feature_extractor": False}
        required = _required(names, parts, half)
        if required is None:
            shown = ", ".join(part or "its top folder" for part in parts)
            raise HubError(f"{repo!r} lacks safetensors weights or settings in one of: {shown}; choose another one.")
        log.info("fetching %d files of %s", len(required), repo)
        return Path(snapshot_download(repo, allow_patterns=required))
    except HubError:
        raise
    except Exception as error:
        named = named or [f"{part}/" if part else "config.json, model.safetensors" for part in parts]
        raise _unreachable(error, repo, named, remedy) from error


def _cached(repo: str) -> Path | None:
    """The snapshot of the main revision in the cache, complete or not.

    huggingface_hub's own look refuses a snapshot that lacks files nobody here reads.
    """
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    place = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model")
    try:
        folder = place / "snapshots" / (place / "refs" / "main").read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return folder if folder.is_dir() else None


def _names(folder: Path) -> list[str]:
    return [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]


def _required(names: Sequence[str], parts: dict[str, bool], half: bool) -> list[str] | None:
    """The files of a repository that are read; None where a part is not complete."""
    required = ["model_index.json"] if "model_index.json" in names else []
    for part, weights in parts.items():
        inside = [name.removeprefix(f"{part}/") for name in names if not part or name.startswith(f"{part}/")]
        inside = [name for name in inside if "/" not in name]
        chosen = [name for name in inside if _SETTINGS.fullmatch(name)]
        heavy = _chosen_weights(inside, half) if weights else []
        if not chosen or (weights and not (heavy and "config.json" in chosen)):
            return None
        required += [f"{part}/{name}" if part else name for name in chosen + heavy]
    return required


def _chosen_weights(names: Collection[str], half: bool) -> list[str]:
    """Of the weight files in one folder, those of one precision, all shards; [] where there is no whole set."""
    sets: dict[tuple[bool, int], list[str]] = {}
    for name in names:
        match = _WEIGHTS.fullmatch(name)
        if match:
            sets.setdefault((bool(match[1] or match[4]), int(match[3] or 1)), []).append(name)
    whole = {key: sorted(found) for key, found in sets.items() if len(found) == key[1]}
    order = sorted(whole, key=lambda key: (key[0] != half, key[1]))
    return whole[order[0]] if order else []


def _unreachable(error: Exception, repo: str, names: Sequence[str], remedy: str) -> HubError:
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, LocalEntryNotFoundError

    reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".:")[:200]
    if isinstance(error, GatedRepoError):
        return HubError(f"{repo!r} wants its licence accepted on its page first; do that, then `hf auth login`.")
    if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
        return HubError(f"{repo!r} has no {', '.join(names)}; check the spelling.")
    return HubError(
        f"{repo!r} is not in the cache and could not be fetched ({reason}); where there is a network, download "
        f"{', '.join(names)} of https://huggingface.co/{repo}, and pass {remedy}."
    )
