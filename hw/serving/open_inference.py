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
    """One input of a request; its data is in the JSON, or in the binary part."""

    name: str
    shape: Annotated[list[Size], msgspec.Meta(min_length=1, max_length=8)]
    datatype: str
    parameters: dict[str, Any] = {}
    data: Any = None


class OutputTensor(msgspec.Struct, kw_only=True):
    """One output that a request asks for."""

    name: str
    parameters: dict[str, Any] = {}


class InferRequest(msgspec.Struct, kw_only=True):
    """A request, without its binary part."""

    id: str = ""
    parameters: dict[str, Any] = {}
    inputs: Annotated[list[InputTensor], msgspec.Meta(min_length=1, max_length=16)]
    outputs: list[OutputTensor] | None = None


def parse(body: bytes, json_bytes: int | None) -> tuple[InferRequest, dict[str, Tensor]]:
    """Read a request and its tensors. json_bytes: of the JSON before the binary tensors, None without any.

    Raises InputError.
    """
    if json_bytes is not None and not 0 < json_bytes <= len(body):
        raise InputError(f"Inference-Header-Content-Length {json_bytes} is not within the body's {len(body)} bytes")
    head, binary = (body, b"") if json_bytes is None else (body[:json_bytes], body[json_bytes:])
    try:
        request = msgspec.json.decode(head, type=InferRequest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"the request is no v2 inference request ({error})") from None
    tensors: dict[str, Tensor] = {}
    for tensor in request.inputs:
        size = tensor.parameters.get("binary_data_size")
        if size is None:
            tensors[tensor.name] = torch.from_numpy(_of_list(tensor))
            continue
        if not isinstance(size, int) or not 0 <= size <= len(binary):
            raise InputError(f"input {tensor.name}: binary_data_size {size!r}, the body has {len(binary)} bytes left")
        tensors[tensor.name] = torch.from_numpy(_of_bytes(tensor, binary[:size]))
        binary = binary[size:]
    if binary:
        raise InputError(f"{len(binary)} bytes of the body belong to no input")
    return request, tensors


def _dtype(tensor: InputTensor) -> Any:
    if tensor.datatype not in TYPES:
        raise InputError(f"input {tensor.name}: datatype {tensor.datatype!r} is unknown; use {', '.join(TYPES)}")
    return TYPES[tensor.datatype]


def _of_list(tensor: InputTensor) -> NDArray[Any]:
    try:
        array = np.array(tensor.data, dtype=_dtype(tensor))
        return array.reshape(tensor.shape)
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError(
            f"input {tensor.name}: data is not {tensor.datatype} of shape {tensor.shape} ({error})"
        ) from None


def _of_bytes(tensor: InputTensor, raw: bytes) -> NDArray[Any]:
    type_ = np.dtype(_dtype(tensor))
    wanted = math.prod(tensor.shape) * type_.itemsize
    if wanted != len(raw):
        raise InputError(
            f"input {tensor.name}: {tensor.datatype} of shape {tensor.shape} takes {wanted} bytes, {len(raw)} came"
        )
    return np.frombuffer(raw, dtype=type_).reshape(tensor.shape).copy()


def checked(tensors: dict[str, Tensor], inputs: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Check tensors against a model's metadata. Raises InputError."""
    accepted = {entry["name"]: entry for entry in inputs}
    for name, tensor in tensors.items():
        if name not in accepted:
            raise InputError(f"input {name!r} is unknown; the model takes {', '.join(accepted)}")
        entry, datatype = accepted[name], NAMES[tensor.numpy().dtype]
        if datatype != entry["datatype"]:
            raise InputError(f"input {name}: datatype {datatype}, the model takes {entry['datatype']}")
        shape = list(tensor.shape)
        fits = len(shape) == len(entry["shape"]) and all(
            wanted in (-1, got) for wanted, got in zip(entry["shape"], shape, strict=True)
        )
        if not fits or 0 in shape:
            raise InputError(f"input {name}: shape {shape}, the model takes {entry['shape']} (-1: any)")
    missing = [name for name, entry in accepted.items() if name not in tensors and not entry.get("optional")]
    if missing:
        raise InputError(f"input {', '.join(missing)} is missing")
    if len({len(tensor) for tensor in tensors.values()}) > 1:
        raise InputError("the inputs have different numbers of samples")
    return tensors


def render(
    model: str, request: InferRequest, outputs: dict[str, Tensor], parameters: dict[str, Any]
) -> tuple[bytes, int | None]:
    """Write the answer's body. Returns also the bytes of its JSON where binary tensors follow. Raises InputError."""
    default = bool(request.parameters.get("binary_data_output"))
    wanted = request.outputs or [OutputTensor(name=name) for name in outputs]
    described, binary = [], b""
    for output in wanted:
        if output.name not in outputs:
            raise InputError(f"output {output.name!r} is unknown; the model gives {', '.join(outputs)}")
        array = outputs[output.name].detach().cpu().contiguous().numpy()
        line: dict[str, Any] = {"name": output.name, "shape": list(array.shape), "datatype": NAMES[array.dtype]}
        if output.parameters.get("binary_data", default):
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
