import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prism.nn.segment_means import attention_bias, segment_counts, segment_means, segment_positions
from prism.partition import split_sizes


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 30), data=st.data())
def test_means_are_those_of_array_split(rows, data):
    segments = data.draw(st.integers(1, rows))
    x = torch.randn(2, rows, 3)
    expected = [part.mean(1) for part in x.split(split_sizes(rows, segments), dim=1)]
    assert torch.allclose(segment_means(x, segments), torch.stack(expected, dim=1), atol=1e-6)


def test_one_row_each_is_the_tensor_itself():
    x = torch.randn(2, 5, 3)
    assert segment_means(x, 5) is x


def test_padding_is_left_out_of_mean_and_count():
    x = torch.arange(12.0).view(1, 6, 2)
    mask = torch.tensor([[1, 0, 1, 1, 0, 0]], dtype=torch.uint8)
    assert segment_counts(mask, 0, 6, 3).tolist() == [[1, 2, 0]]
    assert segment_means(x, 3, mask).tolist() == [[[0, 1], [5, 6], [0, 0]]]


def test_a_mean_stands_at_the_centre_of_its_real_tokens():
    assert segment_positions(None, 4, 9, 2).tolist() == [[5, 7.5]]
    assert segment_positions(None, 4, 9, 5).tolist() == [[4, 5, 6, 7, 8]]
    mask = torch.tensor([[1] * 9, [1] * 6 + [0] * 3], dtype=torch.uint8)
    assert segment_positions(mask, 4, 9, 2).tolist() == [[5, 7.5], [4.5, 0]]


def test_the_first_row_may_be_a_segment_of_its_own():
    x = torch.arange(12.0).view(1, 6, 2)
    mask = torch.tensor([[0, 1, 1, 1, 0, 0]], dtype=torch.uint8)
    assert segment_means(x, 3, None, first_alone=True).tolist() == [[[0, 1], [4, 5], [9, 10]]]
    assert segment_counts(None, 0, 6, 3, first_alone=True).tolist() == [1, 3, 2]
    assert segment_positions(None, 0, 6, 3, first_alone=True).tolist() == [[0, 2, 4.5]]
    assert segment_means(x, 3, mask, first_alone=True)[:, 1:].tolist() == [[[4, 5], [0, 0]]]
    assert segment_counts(mask, 0, 6, 3, first_alone=True).tolist() == [[0, 3, 0]]
    assert segment_means(x, 6, None, first_alone=True) is x


@pytest.mark.parametrize("padded", [False, True])
def test_the_count_bias_equals_attention_over_repeated_rows(padded):
    torch.manual_seed(0)
    own, rows, segments, width = 4, 9, 4, 16
    x, other = torch.randn(2, own, width), torch.randn(2, rows, width)
    mask = torch.ones(2, rows, dtype=torch.uint8)
    if padded:
        mask[1, 5:] = 0  # the last segment has no real token left
    means = segment_means(other, segments, mask)
    counts = segment_counts(mask, 0, rows, segments)
    bias = attention_bias([counts], own, None, causal=False, dtype=torch.float32)
    keys = torch.cat([x, means], dim=1)
    ours = torch.nn.functional.scaled_dot_product_attention(x, keys, keys, attn_mask=bias.squeeze(1))
    for sample in range(2):
        repeated = means[sample].repeat_interleave(counts[sample].long(), dim=0)
        all_keys = torch.cat([x[sample], repeated])[None]
        theirs = torch.nn.functional.scaled_dot_product_attention(x[sample : sample + 1], all_keys, all_keys)
        assert torch.allclose(ours[sample], theirs[0], atol=1e-5)


def test_no_bias_where_nothing_needs_one():
    assert attention_bias([torch.ones(5)], 4, None, causal=False, dtype=torch.float32) is None
    assert attention_bias([], 4, None, causal=False, dtype=torch.float32) is None


def test_a_causal_bias_hides_the_future_of_the_own_part_only():
    bias = attention_bias([torch.tensor([3.0])], 2, None, causal=True, dtype=torch.float32)[0, 0]
    lowest = torch.finfo(torch.float32).min
    assert bias[0].tolist() == [0, lowest, pytest.approx(1.0986, abs=1e-4)]
    assert bias[1, :2].tolist() == [0, 0]
