import pytest
import torch
from torchvision.transforms.v2 import functional as images
from transformers.modeling_outputs import BaseModelOutput, SequenceClassifierOutput

from prism.errors import UnsupportedModelError
from prism.nn import inputs, outputs
from prism.nn.frame import decode, encode
from prism.nn.inputs import Inputs, Pixels

PIXELS = Pixels(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
CPU = torch.device("cpu")


def roundtrip(arguments, pixels=None):
    described, raw = inputs.packed(arguments, pixels)
    assert raw.numel() == described.bytes
    told = decode(encode(described), Inputs)
    return inputs.unpacked(told, raw, CPU), raw.numel()


def test_every_byte_of_an_image_comes_back_as_the_same_bits():
    everything = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, 16, 16)
    x = images.normalize(everything.float().div(255), list(PIXELS.mean), list(PIXELS.std))
    arrived, crossed = roundtrip({"x": x}, PIXELS)
    assert torch.equal(arrived["x"], x)
    assert crossed == x.numel()  # a byte each


@pytest.mark.parametrize("spoilt", [0, 1])
def test_what_is_not_made_of_bytes_crosses_as_it_is(spoilt):
    x = PIXELS.values(torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8), torch.float32)
    x[spoilt, 2, 3, 4] += 1e-4
    arrived, crossed = roundtrip({"x": x}, PIXELS)
    assert torch.equal(arrived["x"], x)
    assert crossed == 4 * x.numel()


@pytest.mark.parametrize(("top", "size"), [(200, 1), (30_000, 2), (50_256, 4), (2**40, 8)])
def test_token_ids_cross_in_the_smallest_integers_that_hold_them(top, size):
    ids = torch.tensor([[0, 1, top]])
    arrived, crossed = roundtrip({"input_ids": ids})
    assert torch.equal(arrived["input_ids"], ids) and arrived["input_ids"].dtype == ids.dtype
    assert crossed == 3 * size


def test_masks_floats_and_plain_values():
    call = {
        "mask": torch.tensor([[True, False]]),
        "negative": torch.tensor([[-1, 5]]),
        "x": torch.randn(1, 2, dtype=torch.float64),
        "empty": torch.zeros(0, 3, dtype=torch.long),
        "use_cache": False,
        "labels": None,
        "keep": 3,
    }
    arrived, _ = roundtrip(call)
    assert set(arrived) == set(call)
    for name, value in call.items():
        same = torch.equal(arrived[name], value) if isinstance(value, torch.Tensor) else arrived[name] == value
        assert same, name


def test_samples_are_cut_and_what_belongs_to_all_is_kept():
    call = {"input_ids": torch.arange(12).view(4, 3), "position_ids": torch.arange(3)[None], "flag": True}
    cut = inputs.piece(call, 1, 3)
    assert cut["input_ids"].tolist() == [[3, 4, 5], [6, 7, 8]]
    assert cut["position_ids"].tolist() == [[0, 1, 2]] and cut["flag"] is True


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({"flag": True}, "no tensor to split"),
        ({"x": torch.zeros(4, 2), "y": torch.zeros(3, 2)}, "y has 3 rows for 4 samples"),
    ],
)
def test_calls_that_cannot_be_split(call, words):
    with pytest.raises(UnsupportedModelError, match=words):
        inputs.piece(call, 0, 1)


def test_arguments_that_cannot_cross():
    with pytest.raises(UnsupportedModelError, match="cache is a list"):
        inputs.packed({"x": torch.zeros(1), "cache": [1]}, None)


OUTPUTS = [
    torch.randn(4, 7),
    (torch.randn(4, 7), torch.randn(4, 2, dtype=torch.float64)),
    [torch.randn(4, 1), None],
    {"a": torch.randn(4, 1)},
    SequenceClassifierOutput(logits=torch.randn(4, 3)),
    (BaseModelOutput(last_hidden_state=torch.randn(4, 5, 6)), torch.arange(4)),
]


@pytest.mark.parametrize("whole", OUTPUTS, ids=lambda output: type(output).__name__)
def test_outputs_are_put_together_in_order(whole):
    layout = decode(encode(outputs.layout_of(whole, 4)), outputs.Layout)
    raw = outputs.packed(whole)
    assert raw.numel() == outputs.size_of(layout, 4)
    rows = outputs.unpacked(layout, raw, 4, CPU)
    pieces = [[tensor[:3] for tensor in rows], [tensor[3:] for tensor in rows]]
    again = outputs.joined(layout, pieces)
    assert type(again) is type(whole)
    assert outputs.layout_of(again, 4) == layout
    for ours, theirs in zip(outputs.tensors_of(again), outputs.tensors_of(whole), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("output", [torch.tensor(1.0), torch.zeros(3, 2), object()])
def test_outputs_without_a_row_a_sample_are_refused(output):
    with pytest.raises(UnsupportedModelError, match="one stage"):
        outputs.layout_of(output, 4)
