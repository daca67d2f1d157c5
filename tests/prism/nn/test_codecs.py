import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prism.codecs import CODECS, PROBED_BY_PLACE, WIRES, payload_bytes
from prism.nn.codecs import _STREAMS, decode, encode, payload_like, rotation, stream_of

SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 70))
DELTAS = [wire for wire in WIRES if CODECS[wire].predictive]
# share of a Gaussian's energy that the best uniform quantiser of so many bits leaves as error (Max 1960)
NOISE = {"delta1": 0.363, "delta2": 0.119, "delta3": 0.0374, "delta4": 0.0115}


def rms(x: torch.Tensor) -> float:
    return float(x.pow(2).mean().sqrt())


@settings(max_examples=100, deadline=None)
@given(shape=SHAPES, wire=st.sampled_from(WIRES), offset=st.floats(-100, 100))
def test_bytes_are_exact_and_errors_bounded(shape, wire, offset):
    x = torch.randn(shape) + offset
    payload = encode(wire, x)
    expected_shape, dtype = payload_like(wire, shape)
    assert (tuple(payload.shape), payload.dtype) == (expected_shape, dtype)
    assert payload.nbytes == payload_bytes(wire, x.numel())
    back = decode(wire, payload, shape, x.dtype)
    if wire in DELTAS:
        assert rms(back - x) <= 1.2 * rms(x)  # few values in a group of 128 are not Gaussian
        return
    half = abs(offset) / 1024 + 0.01  # what fp16 rounds a value or a minimum by
    levels = {"fp32": 0.0, "fp16": half}.get(wire)
    bound = levels if levels is not None else 10 / (2 ** CODECS[wire].bits - 1) + 2 * half
    assert (back - x).abs().max() <= bound


@pytest.mark.parametrize("wire", WIRES)
def test_constant_large_and_tiny_values_survive(wire):
    for value in (0.0, 1e-9, 3.5, -6e4, 6e4):
        back = decode(wire, encode(wire, torch.full((2, 40), value)), (2, 40), torch.float32)
        assert torch.isfinite(back).all()
        if wire in DELTAS:
            assert rms(back - value) <= 1e-3 + 0.7 * abs(value)
        else:
            assert (back - value).abs().max() < 1e-3


def test_every_name_has_a_row_and_its_tensors():
    assert tuple(CODECS) == WIRES == tuple(_STREAMS)
    assert all(codec.name == wire for wire, codec in CODECS.items())
    assert [wire for wire in WIRES if CODECS[wire].lossless] == ["fp32"]
    assert set(PROBED_BY_PLACE) <= set(WIRES)


def test_bytes_of_the_delta_codecs():
    """A scale of two bytes for each 128 values."""
    assert [payload_bytes(wire, 384) for wire in DELTAS] == [3 * (2 + 16 * bits) for bits in (4, 3, 2, 1)]
    assert payload_bytes("delta3", 385) == 4 * 50


def test_a_payload_of_the_tensors_own_type_is_not_copied():
    x = torch.randn(2, 3, 32)
    assert encode("fp32", x) is x
    assert decode("fp32", x, (2, 3, 32), torch.float32).data_ptr() == x.data_ptr()


def test_more_bits_are_nearer():
    x = torch.randn(4, 50, 64)
    for wires in (("int2", "int4", "int8", "fp16"), ("delta1", "delta2", "delta3", "delta4")):
        errors = [(decode(w, encode(w, x), x.shape, x.dtype) - x).pow(2).mean() for w in wires]
        assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("wire", DELTAS)
@pytest.mark.parametrize("kind", ["gaussian", "outliers", "offset"])
def test_the_error_is_at_most_that_of_the_best_uniform_quantiser(wire, kind):
    """Also with a channel of large values, and around a constant: that is what the rotation is for."""
    x = torch.randn(64, 384, generator=torch.Generator().manual_seed(0))
    x[:, 7] *= 30 if kind == "outliers" else 1
    x += 3.0 if kind == "offset" else 0.0
    back = decode(wire, encode(wire, x), x.shape, x.dtype)
    assert (rms(back - x) / rms(x)) ** 2 < 1.25 * NOISE[wire]


@pytest.mark.parametrize("wire", DELTAS)
def test_the_loop_is_closed(wire):
    """Rows change by a tenth in each of 40 blocks. The error settles well under that of a block coded by itself, and an
    early one is forgotten."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 8, 128, generator=generator)
    sender, receiver = stream_of(wire, (2, 8, 128)), stream_of(wire, (2, 8, 128))
    errors = []
    for block in range(40):
        back = receiver.decode(sender.encode(x), torch.float32)
        errors.append(rms(back - x) / rms(x))
        if block == 20:
            x = torch.randn(x.shape, generator=generator)  # a jump
        x = x + 0.1 * rms(x) * torch.randn(x.shape, generator=generator)
    settled = sum(errors[10:20]) / 10
    assert settled < 0.3 * errors[0]
    assert errors[21] > 2 * settled  # the jump was seen
    assert sum(errors[-5:]) / 5 < 1.2 * settled


def test_streams_of_one_part_stay_equal():
    """Whoever takes the same payloads has the same rows, and what the sender predicts from is what they have."""
    shape = (3, 5, 48)  # the last group isn't full
    sender, first, second = (stream_of("delta2", shape) for _ in range(3))
    for _ in range(6):
        payload = sender.encode(torch.randn(shape))
        assert torch.equal(first.decode(payload, torch.float32), second.decode(payload, torch.float32))
    assert torch.equal(sender._last, first._last)


def test_a_stream_of_another_codec_is_the_codec():
    x = torch.randn(2, 3, 32)
    for wire in ("fp32", "int4"):
        stream = stream_of(wire, (2, 3, 32))
        for _ in range(2):
            assert torch.equal(stream.encode(x), encode(wire, x))
        assert torch.equal(stream.decode(encode(wire, x), x.dtype), decode(wire, encode(wire, x), x.shape, x.dtype))


def test_the_rotation_is_orthonormal_and_the_same_everywhere():
    turn = rotation(torch.device("cpu"))
    assert torch.allclose(turn @ turn.T, torch.eye(128), atol=1e-6)
    assert "".join("+" if value > 0 else "-" for value in turn[:16, 0].tolist()) == "++--+-+--+++-++-"
