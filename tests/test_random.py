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
