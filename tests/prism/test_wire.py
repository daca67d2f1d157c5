import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prism.plan import WIRES, payload_bytes
from prism.wire import decode, encode, payload_like

SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 70))


@settings(max_examples=60, deadline=None)
@given(shape=SHAPES, wire=st.sampled_from(WIRES), offset=st.floats(-100, 100))
def test_bytes_are_exact_and_errors_bounded(shape, wire, offset):
    x = torch.randn(shape) + offset
    payload = encode(wire, x)
    expected_shape, dtype = payload_like(wire, shape)
    assert (tuple(payload.shape), payload.dtype) == (expected_shape, dtype)
    assert payload.nbytes == payload_bytes(wire, x.numel())
    back = decode(wire, payload, shape, x.dtype)
    half = abs(offset) / 1024 + 0.01  # what fp16 rounds a value or a minimum by
    levels = {"fp32": 0.0, "fp16": half}.get(wire)
    bound = levels if levels is not None else 10 / (2 ** int(wire[3:]) - 1) + 2 * half
    assert (back - x).abs().max() <= bound


@pytest.mark.parametrize("wire", WIRES)
def test_constant_large_and_tiny_values_survive(wire):
    for value in (0.0, 1e-9, 3.5, -6e4, 6e4):
        back = decode(wire, encode(wire, torch.full((2, 40), value)), (2, 40), torch.float32)
        assert torch.isfinite(back).all()
        assert (back - value).abs().max() < 1e-3


def test_a_payload_of_the_tensors_own_type_is_not_copied():
    x = torch.randn(2, 3, 32)
    assert encode("fp32", x) is x
    assert decode("fp32", x, (2, 3, 32), torch.float32).data_ptr() == x.data_ptr()


def test_more_bits_are_nearer():
    x = torch.randn(4, 50, 64)
    errors = [
        (decode(w, encode(w, x), x.shape, x.dtype) - x).pow(2).mean()
        for w in ("int2", "int4", "int8", "fp16")
    ]
    assert errors == sorted(errors, reverse=True)
