"""Requests and answers of the Open Inference Protocol (v2), as JSON and with its binary extension.

https://github.com/open-inference/open-inference-protocol; the binary extension is the one of Triton's clients.
"""

import math
from typing import Annotated, Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prism.errors import InputError

TYPES: dict[str, Any] = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
}
NAMES = {np.dtype(type_): name for name, type_ in TYPES.items()}
Size = Annotated[int, msgspec.Meta(ge=0, le=1 << 31)]


class InputTensor(msgspec.Struct, kw_only=True):
    name: str
    shape: Annotated[list[Size], msgspec.Meta(min_length=1, max_length=8)]
    datatype: str
    parameters: dict[str, Any] = {}
    data: Any = None


class OutputTensor(msgspec.Struct, kw_only=True):
    name: str
    parameters: dict[str, Any] = {}


class InferRequest(msgspec.Struct, kw_only=True):
    id: str = ""
    parameters: dict[str, Any] = {}
    inputs: Annotated[list[InputTensor], msgspec.Meta(min_length=1, max_length=16)]
    outputs: list[OutputTensor] | None = None


def parse(body: bytes, json_bytes: int | None) -> tuple[InferRequest, dict[str, Tensor]]:
    """A request and its tensors. json_bytes: of the JSON before the binary tensors, None without any. Raises InputError
    with what is wrong."""
    if json_bytes is not None and not 0 < json_bytes <= len(body):
        raise InputError(f"Inference-Header-Content-Length {json_bytes} is not within the body's {len(body)} bytes")
    head, binary = (body, b"") if json_bytes is None else (body[:json_bytes], body[json_bytes:])
    try:
        request = msgspec.json.decode(head, type=InferRequest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"the request is no v2 inference request ({error})") from None
    tensors: dict[str, Tensor] = {}
    for each in request.inputs:
        size = each.parameters.get("binary_data_size")
        if size is None:
            tensors[each.name] = torch.from_numpy(_of_list(each))
            continue
        if not isinstance(size, int) or not 0 <= size <= len(binary):
            raise InputError(f"input {each.name}: binary_data_size {size!r}, the body has {len(binary)} bytes left")
        tensors[each.name] = torch.from_numpy(_of_bytes(each, binary[:size]))
        binary = binary[size:]
    if binary:
        raise InputError(f"{len(binary)} bytes of the body belong to no input")
    return request, tensors


def _dtype(each: InputTensor) -> Any:
    if each.datatype not in TYPES:
        raise InputError(f"input {each.name}: datatype {each.datatype!r} is unknown; use {', '.join(TYPES)}")
    return TYPES[each.datatype]


def _of_list(each: InputTensor) -> NDArray[Any]:
    try:
        array = np.array(each.data, dtype=_dtype(each))
        return array.reshape(each.shape)
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError(f"input {each.name}: data is not {each.datatype} of shape {each.shape} ({error})") from None


def _of_bytes(each: InputTensor, raw: bytes) -> NDArray[Any]:
    type_ = np.dtype(_dtype(each))
    wanted = math.prod(each.shape) * type_.itemsize
    if wanted != len(raw):
        raise InputError(
            f"input {each.name}: {each.datatype} of shape {each.shape} takes {wanted} bytes, {len(raw)} came"
        )
    return np.frombuffer(raw, dtype=type_).reshape(each.shape).copy()


def checked(tensors: dict[str, Tensor], inputs: list[dict[str, Any]]) -> dict[str, Tensor]:
    """The tensors, where they are what a model's metadata says. Raises InputError."""
    known = {each["name"]: each for each in inputs}
    for name, tensor in tensors.items():
        if name not in known:
            raise InputError(f"input {name!r} is unknown; the model takes {', '.join(known)}")
        each, datatype = known[name], NAMES[tensor.numpy().dtype]
        if datatype != each["datatype"]:
            raise InputError(f"input {name}: datatype {datatype}, the model takes {each['datatype']}")
        shape = list(tensor.shape)
        fits = len(shape) == len(each["shape"]) and all(
            wanted in (-1, got) for wanted, got in zip(each["shape"], shape, strict=True)
        )
        if not fits or 0 in shape:
            raise InputError(f"input {name}: shape {shape}, the model takes {each['shape']} (-1: any)")
    missing = [name for name, each in known.items() if name not in tensors and not each.get("optional")]
    if missing:
        raise InputError(f"input {', '.join(missing)} is missing")
    if len({len(tensor) for tensor in tensors.values()}) > 1:
        raise InputError("the inputs have different numbers of samples")
    return tensors


def render(
    model: str, request: InferRequest, outputs: dict[str, Tensor], parameters: dict[str, Any]
) -> tuple[bytes, int | None]:
    """The answer's body, and the bytes of its JSON where binary tensors follow. Raises InputError."""
    default = bool(request.parameters.get("binary_data_output"))
    wanted = request.outputs or [OutputTensor(name=name) for name in outputs]
    described, binary = [], b""
    for each in wanted:
        if each.name not in outputs:
            raise InputError(f"output {each.name!r} is unknown; the model gives {', '.join(outputs)}")
        array = outputs[each.name].detach().cpu().contiguous().numpy()
        line: dict[str, Any] = {"name": each.name, "shape": list(array.shape), "datatype": NAMES[array.dtype]}
        if each.parameters.get("binary_data", default):
            raw = array.tobytes()
            line["parameters"] = {"binary_data_size": len(raw)}
            binary += raw
        else:
            line["data"] = array.ravel().tolist()
        described.append(line)
    answer: dict[str, Any] = {"model_name": model, "model_version": "1", "outputs": described}
    if parameters:
        answer["parameters"] = parameters
    if request.id:
        answer["id"] = request.id
    head = msgspec.json.encode(answer)
    return head + binary, len(head) if binary else None
