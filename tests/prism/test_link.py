"""A link and its text form."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prism.errors import ConfigError
from prism.link import LinkSpec


@pytest.mark.parametrize(
    "text",
    [
        "loopback",
        "network",
        "shaper:100Mbps",
        "shaper:100Mbps,2ms",
        "testbed:100Mbps,0s,500us",
        "testbed:1.5Gbps,2ms,500us,1%,overhead=40B",
        "testbed:100Mbps,overhead=40B",
        "testbed:100Mbps,0s,0s,1%",
        "testbed:walk.csv,2ms",
    ],
)
def test_the_text_form_reads_back(text):
    assert LinkSpec.parse(str(LinkSpec.parse(text))) == LinkSpec.parse(text)


def test_the_text_form_stays_short():
    assert str(LinkSpec.parse("testbed:100Mbps,0s,0s,0%")) == "testbed:100Mbps"
    assert str(LinkSpec.parse("testbed:100Mbps,0s,0.5ms")).count(",") == 2
    assert str(LinkSpec()) == "loopback"


@given(st.integers(1, 9999), st.integers(0, 999), st.integers(0, 999), st.integers(0, 99), st.integers(0, 99))
def test_every_link_of_a_testbed_survives_its_text_form(mbps, latency_us, jitter_us, loss_pct, overhead):
    link = LinkSpec(
        kind="testbed",
        rate_bps=mbps * 1e6,
        latency_s=latency_us / 1e6,
        jitter_s=jitter_us / 1e6,
        loss=loss_pct / 100,
        overhead_bytes=overhead,
    )
    found = LinkSpec.parse(str(link))
    assert (found.kind, found.overhead_bytes) == (link.kind, link.overhead_bytes)
    for name in ("rate_bps", "latency_s", "jitter_s", "loss"):
        assert getattr(found, name) == pytest.approx(getattr(link, name))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("wifi", "is unknown; use loopback"),
        ("shaper", "is unknown"),
        ("loopback:100Mbps", "is unknown"),
        ("shaper:100Mbps,2ms,1ms", "too many parts; a shaper takes shaper:RATE"),
        ("shaper:100Mbps,overhead=4B", "too many parts"),
        ("testbed:100Mbps,1ms,1ms,1%,2%", "too many parts; a testbed takes testbed:RATE"),
        ("testbed:100Mbps,mtu=40", "'mtu=40' is unknown"),
        ("testbed:100Mbps,overhead=xB", "no number of bytes"),
        ("testbed:nanMbps", "not a number"),
        ("testbed:infMbps", "not a number"),
        ("testbed:1e400Mbps", "'1e400Mbps' is too large"),
        ("testbed:1e305Mbps", "'1e305Mbps' is too large"),
        ("testbed:1Mbps,1e400s", "'1e400s' is too large"),
        ("shaper:walk.csv", "not a number"),
    ],
)
def test_a_link_that_cannot_be_is_refused_with_the_form(text, words):
    with pytest.raises(ConfigError, match=words):
        LinkSpec.parse(text)
