"""Load models by name: timm and transformers names, local folders, and the small ViT that ships with Prism.

Nothing is ever downloaded: weights are found on this machine, or asked to be random. The caller's environment and
random state stay as they are.
"""

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch
from torch import nn

from prism.config import nearest
from prism.errors import InputError, UnsupportedModelError
from prism.nn.families import adapter_for
from prism.spec import ModelSpec

ASSETS = Path(__file__).parents[1] / "assets"
BUNDLED = "fashion-vit"
# transformers has no list of names; these are the shapes that its config classes have by default or by number
TRANSFORMERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert-base-uncased": ("BertModel", "BertConfig", {}),
    "bert-large-uncased": (
        "BertModel",
        "BertConfig",
        dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096),
    ),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", {}),
    "gpt2-medium": ("GPT2LMHeadModel", "GPT2Config", dict(n_embd=1024, n_layer=24, n_head=16)),
    "gpt2-large": ("GPT2LMHeadModel", "GPT2Config", dict(n_embd=1280, n_layer=36, n_head=20)),
    "HuggingFaceTB/SmolLM2-135M": (
        "LlamaForCausalLM",
        "LlamaConfig",
        dict(
            hidden_size=576,
            num_hidden_layers=30,
            num_attention_heads=9,
            num_key_value_heads=3,
            intermediate_size=1536,
            vocab_size=49152,
            max_position_embeddings=8192,
            tie_word_embeddings=True,
            rope_parameters=dict(rope_type="default", rope_theta=100000.0),
        ),
    ),
}


class Loaded(msgspec.Struct, frozen=True, kw_only=True):
    """A model ready to run.

    weights: where they are from, as text. labels: names of the classes, where the model says them.
    folder: place of its tokenizer. image: timm's data configuration.
    """

    model: Any
    kind: Literal["image", "text"]
    weights: str
    labels: tuple[str, ...] = ()
    folder: Path | None = None
    image: dict[str, Any] | None = None


def load_model(name: str, weights: str | None = None, seed: int = 0, device: str = "cpu") -> Loaded:
    """Load a model in eval mode.

    weights: None for the model's own, "random" (of the seed), or a .safetensors or .pt file.
    Raises InputError that says where to put weights, or names the nearest known model.
    """
    folder = ASSETS / BUNDLED if name == BUNDLED else Path(name)
    with _seeded(seed, torch.device(device)), torch.device(device):
        if folder.is_dir():
            loaded = _from_folder(folder, weights, seed)
        elif name in TRANSFORMERS:
            loaded = _from_transformers(name, weights, seed)
        else:
            loaded = _from_timm(name, weights, seed)
    if weights not in (None, "random"):
        _load_file(loaded.model, Path(weights))
    loaded.model.eval().requires_grad_(False)
    return loaded


def describe(name: str) -> ModelSpec:
    """Describe the shape of a model by name, without allocating its weights. Raises InputError."""
    return adapter_for(load_model(name, weights="random", device="meta").model).spec


@contextlib.contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the generators that random weights are drawn from, and put the caller's state back afterwards."""
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        torch.default_generator.manual_seed(seed)
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


@contextlib.contextmanager
def _without_bar() -> Iterator[None]:
    """Keep transformers from drawing its progress bar between the lines of ours."""
    from transformers.utils import logging

    drawn = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if drawn:
            logging.enable_progress_bar()


def _origin(weights: str, seed: int) -> str:
    return f"random (seed {seed})" if weights == "random" else weights


def _from_folder(folder: Path, weights: str | None, seed: int) -> Loaded:
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"{folder}: has no config.json; give a folder saved by timm or transformers")
    config = msgspec.json.decode(path.read_bytes())
    if "architecture" in config:
        return _timm_folder(folder, config, weights, seed)
    import transformers

    architecture = (config.get("architectures") or ["?"])[0]
    cls = getattr(transformers, architecture, None)
    if cls is None:
        raise UnsupportedModelError(f"{path}: architecture {architecture!r} is unknown to the installed transformers")
    if weights is not None:
        model = cls(cls.config_class.from_pretrained(folder))
        origin = _origin(weights, seed)
        return Loaded(model=model, kind="text", weights=origin, folder=folder, labels=_labels(model))
    try:
        with _without_bar():
            model = cls.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    except OSError as error:
        raise InputError(f"{folder}: no weights ({error}); put model.safetensors there, or pass --weights") from None
    return Loaded(model=model, kind="text", weights=str(folder), folder=folder, labels=_labels(model))


def _labels(model: Any) -> tuple[str, ...]:
    names = getattr(model.config, "id2label", None) or {}
    return tuple(str(names[index]) for index in sorted(names))


def _timm_folder(folder: Path, config: dict[str, Any], weights: str | None, seed: int) -> Loaded:
    import timm

    args = {**config.get("model_args", {}), "num_classes": config.get("num_classes", 1000)}
    model = timm.create_model(config["architecture"], pretrained=False, **args)
    cfg = config.get("pretrained_cfg", {})
    model.pretrained_cfg = {**model.pretrained_cfg, **cfg}
    if weights is None:
        _load_file(model, folder / "model.safetensors")
    return Loaded(
        model=model,
        kind="image",
        image=_image_config(model, cfg),
        labels=tuple(cfg.get("label_names") or ()),
        weights=folder.name if weights is None else _origin(weights, seed),
    )


def _from_transformers(name: str, weights: str | None, seed: int) -> Loaded:
    import transformers

    architecture, config, shape = TRANSFORMERS[name]
    cls = getattr(transformers, architecture)
    if weights is not None:
        model = cls(getattr(transformers, config)(**shape))
        return Loaded(model=model, kind="text", weights=_origin(weights, seed))
    try:
        with _without_bar():
            model = cls.from_pretrained(name, local_files_only=True, dtype=torch.float32)
    except OSError:
        raise _no_weights(name) from None
    return Loaded(model=model, kind="text", weights=f"{name} (local cache)")


def _from_timm(name: str, weights: str | None, seed: int) -> Loaded:
    import timm

    if not timm.is_model(name):
        hint = nearest(name, [BUNDLED, *TRANSFORMERS, *timm.list_models("*vit*"), *timm.list_models("deit*")])
        hint = hint if hint.startswith("did") else f"use {BUNDLED}, a timm name, {', '.join(TRANSFORMERS)}, or a folder"
        raise InputError(f"model {name!r} is unknown; {hint}")
    # given a file, timm asks no hub; the hub's files have timm's own format even where custom_load names another
    cached = {} if weights is not None else dict(file=_cached_by_timm(name), custom_load=False)
    try:
        model = timm.create_model(name, pretrained=weights is None, pretrained_cfg_overlay=cached)
    except Exception as error:
        raise InputError(f"timm can't build {name!r}: {error}") from None
    origin = f"{name} (local cache)" if weights is None else _origin(weights, seed)
    return Loaded(model=model, kind="image", weights=origin, image=_image_config(model, {}))


def _cached_by_timm(name: str) -> str:
    """Path of a model's weights in the cache of huggingface_hub. Raises InputError where there are none."""
    from huggingface_hub import try_to_load_from_cache
    from timm.models import get_pretrained_cfg

    cfg = get_pretrained_cfg(name)
    repository, _, revision = (cfg.hf_hub_id or "").partition("@") if cfg else ("", "", "")
    names = (cfg.hf_hub_filename,) if cfg and cfg.hf_hub_filename else ("model.safetensors", "pytorch_model.bin")
    for file in names if repository else ():
        path = try_to_load_from_cache(repository, file, revision=revision or None)
        if isinstance(path, str):
            return path
    raise _no_weights(name)


def _image_config(model: nn.Module, cfg: dict[str, Any]) -> dict[str, Any]:
    from timm.data import resolve_data_config

    return dict(resolve_data_config(cfg, model=model))


def _no_weights(name: str) -> InputError:
    return InputError(
        f"no weights of {name!r} on this machine, and nothing is downloaded; save the model into a folder and give "
        f"the folder, pass --weights FILE.safetensors, or --weights random where only time matters"
    )


def _load_file(model: nn.Module, path: Path) -> None:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(state)
    except OSError as error:
        raise InputError(f"{path}: weights can't be read ({error}); give a .safetensors or .pt file") from None
    except Exception as error:
        first = str(error).splitlines()[0]
        raise InputError(f"{path}: weights don't fit {type(model).__name__} ({first}); give this model's own") from None


def safetensors_of(name: str, weights: str | None) -> list[Path]:
    """Find the safetensors files of a model's weights; none where they are random or of another kind."""
    if weights is not None:
        return [Path(weights)] if weights.endswith(".safetensors") else []
    folder = ASSETS / BUNDLED if name == BUNDLED else Path(name)
    if folder.is_dir():
        return _shards(folder)
    if name in TRANSFORMERS:
        from huggingface_hub import try_to_load_from_cache

        path = try_to_load_from_cache(name, "model.safetensors")
        return [Path(path)] if isinstance(path, str) else []
    path = _cached_by_timm(name)
    return [Path(path)] if path.endswith(".safetensors") else []


class _Index(msgspec.Struct):
    """Which file of a folder has which tensor."""

    weight_map: dict[str, str]


def _shards(folder: Path) -> list[Path]:
    """A folder's safetensors files: the one, or those that an index names."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = msgspec.json.decode(index.read_bytes(), type=_Index).weight_map.values()
        except msgspec.DecodeError as error:
            raise InputError(f"{index}: can't be read ({error}); save the model again") from None
        return [folder / file for file in sorted(set(shards))]
    single = folder / "model.safetensors"
    return [single] if single.is_file() else []


def described(name: str, value: torch.Tensor) -> bytes:
    """What a fingerprint takes of a tensor beside its values."""
    return f"{name}{tuple(value.shape)}{value.dtype}".encode()


def fingerprint(model: nn.Module) -> str:
    """Hash every parameter's name, shape and values."""
    digest = hashlib.blake2b(digest_size=8)
    for name, parameter in model.state_dict().items():
        digest.update(described(name, parameter))
        digest.update(parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
