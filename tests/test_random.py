import numpy as np
import pytest

from coursekit import random


def test_streams_are_reproducible_and_distinct():
    draw = lambda *labels, seed=0: random.stream(seed, *labels).standard_normal(1000)  # noqa: E731
    np.testing.assert_array_equal(draw("a", 1), draw("a", 1))
    others = [draw("b", 1), draw("a", 2), draw("a"), draw("a", 1, seed=1)]
    for other in others:
        # correlation of independent samples of 1000: standard error 1/√1000
        assert abs(np.corrcoef(draw("a", 1), other)[0, 1]) < 5 / np.sqrt(1000)


def test_the_stream_of_a_label_never_changes():
    import zlib

    expected = np.random.default_rng([7, zlib.crc32(b"spiked")]).random(3)
    np.testing.assert_array_equal(random.stream(7, "spiked").random(3), expected)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("seed", [-1, 1.5, "0"])
def test_bad_seed(seed):
    with pytest.raises(ValueError, match="seed must be"):
        random.stream(seed, "a")
    with pytest.raises(ValueError, match="seed must be"):
        random.torch_stream(seed, "a")


def test_torch_streams_are_reproducible_and_distinct():
    import torch

    draw = lambda *labels, seed=0: torch.randn(1000, generator=random.torch_stream(seed, *labels))  # noqa: E731
    before = torch.get_rng_state()
    np.testing.assert_array_equal(draw("a", 1), draw("a", 1))
    for other in (draw("b", 1), draw("a", 2), draw("a"), draw("a", 1, seed=1)):
        assert abs(np.corrcoef(draw("a", 1), other)[0, 1]) < 5 / np.sqrt(1000)
    assert torch.equal(torch.get_rng_state(), before)  # torch's own state is not touched
    assert random.torch_stream(0, "a").device.type == "cpu"


def test_the_torch_stream_of_a_label_never_changes():
    import zlib

    import torch

    # its seed is the first number below 2⁶³ of the numpy stream of that label
    seed = np.random.default_rng([7, zlib.crc32(b"spiked"), zlib.crc32(b"3")]).integers(2**63)
    expected = torch.rand(3, generator=torch.Generator().manual_seed(int(seed)))
    assert torch.equal(torch.rand(3, generator=random.torch_stream(7, "spiked", 3)), expected)
