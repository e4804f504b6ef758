"""Information measures."""

import numpy as np
import scipy.fft
import scipy.spatial.distance
import scipy.stats
from comparison import Close, SameMean, Work
from sklearn.metrics import mutual_info_score

from coursekit import information

LAWS = (500, 1_000, 2_000, 4_000, 8_000)
OUTCOMES = 10
SHAPE = 16, 10  # rows and columns of a table
PAIRS = 2_000  # observations in a table
REL_ENTR = (
    "{} of the time is spent in scipy.special.rel_entr, which the peer calls too and which, unlike plain logarithms, "
    "keeps the digits of nearly equal laws; {}."
)


def laws(n):
    return np.random.default_rng(0).dirichlet(np.ones(OUTCOMES), size=(2, n))


def bench_entropy(compare):
    def make(n):
        p, _ = laws(n)
        return Work(
            ours=lambda: information.entropy(p),
            peers={"scipy entropy": lambda: scipy.stats.entropy(p, axis=-1)},
            floor=lambda: np.log(p),
        )

    compare(
        f"Entropy of laws on {OUTCOMES} outcomes",
        make,
        LAWS,
        at=2_000,
        unit="laws",
        agree=Close(rtol=1e-12),
        floor="the logarithms",
        growth="n",
    )


def bench_kl(compare):
    def make(n):
        p, q = laws(n)
        return Work(
            ours=lambda: information.kl(p, q),
            peers={"scipy entropy": lambda: scipy.stats.entropy(p, q, axis=-1)},
            floor=lambda: np.log(p / q),
        )

    compare(
        f"Kullback–Leibler divergence of laws on {OUTCOMES} outcomes",
        make,
        LAWS,
        at=2_000,
        unit="pairs",
        agree=Close(rtol=1e-9, atol=1e-12),
        floor="the logarithms",
        growth="n",
        reason=REL_ENTR.format(
            "half", "the rest checks and normalises the laws and adds q - p, so that no term is negative"
        ),
    )


def bench_js(compare):
    def make(n):
        p, q = laws(n)

        def logarithms():
            m = p + q
            np.log(p / m), np.log(q / m)

        return Work(
            ours=lambda: information.js(p, q),
            peers={"scipy jensenshannon²": lambda: scipy.spatial.distance.jensenshannon(p, q, axis=-1) ** 2},
            floor=logarithms,
        )

    compare(
        f"Jensen–Shannon divergence of laws on {OUTCOMES} outcomes",
        make,
        LAWS,
        at=2_000,
        unit="pairs",
        agree=Close(rtol=1e-9, atol=1e-12),
        floor="the logarithms",
        growth="n",
        reason=REL_ENTR.format(
            "two thirds",
            "the rest checks the laws and leaves no negative term, while the peer may lose half the digits",
        ),
    )


def bench_mutual_information(compare):
    def make(n):
        cells = np.prod(SHAPE)
        counts = np.random.default_rng(0).multinomial(PAIRS, np.full(cells, 1 / cells), size=n).reshape(-1, *SHAPE)
        joint = counts / PAIRS

        def scipy_entropy():
            product = joint.sum(axis=2, keepdims=True) * joint.sum(axis=1, keepdims=True)
            return scipy.stats.entropy(joint.reshape(n, -1), product.reshape(n, -1), axis=-1)

        return Work(
            ours=lambda: information.mutual_information(joint),
            peers={
                "scipy entropy of all tables": scipy_entropy,
                "scikit-learn, a loop": lambda: [mutual_info_score(None, None, contingency=table) for table in counts],
            },
            floor=lambda: np.log(joint + 1.0),
        )

    compare(
        f"Mutual information of tables of {SHAPE[0]} × {SHAPE[1]}",
        make,
        (250, 500, 1_000, 2_000, 4_000),
        at=1_000,
        unit="tables",
        agree=Close(rtol=1e-9),
        floor="the logarithms",
        growth="n",
        reason=REL_ENTR.format(
            "a third", "the rest checks the tables and divides by p(x) first, because p(x)p(y) can underflow"
        ),
    )


def bench_independence_test(compare):
    def make(n):
        rng = np.random.default_rng(0)
        x, y = rng.integers(SHAPE[0], size=PAIRS), rng.integers(SHAPE[1], size=PAIRS)
        counts = scipy.stats.contingency.crosstab(x, y).count
        law = scipy.stats.random_table(counts.sum(axis=1), counts.sum(axis=0))

        def vectorised():
            """Labels of all tables shuffled, counted and measured together."""
            cells = x * SHAPE[1] + rng.permuted(np.tile(y, (n, 1)), axis=1) + np.prod(SHAPE) * np.arange(n)[:, None]
            joint = np.bincount(cells.ravel(), minlength=n * np.prod(SHAPE)).reshape(n, -1) / PAIRS
            product = np.outer(counts.sum(axis=1), counts.sum(axis=0)).ravel() / PAIRS**2
            return scipy.stats.entropy(joint, product, axis=-1)

        return Work(
            ours=lambda: information.independence_test(counts, n, rng=0).null,
            peers={
                "shuffles and scikit-learn, a loop": lambda: [
                    mutual_info_score(x, rng.permutation(y)) for _ in range(n)
                ],
                "shuffles, vectorised": vectorised,
            },
            floor=lambda: law.rvs(n, method="patefield", random_state=np.random.default_rng(0)),
        )

    compare(
        f"Permutation test of independence, {PAIRS:,} pairs in {SHAPE[0]} × {SHAPE[1]}",
        make,
        (500, 1_000, 2_000, 4_000, 8_000),
        at=1_000,
        unit="shuffles",
        agree=SameMean(5),
        floor="drawing the tables",
        growth="n",
    )


def bench_reliability(compare):
    def make(n):
        confidence = np.random.default_rng(0).random(n)
        correct = confidence > 0.5

        def poisson_binomial():
            hits = np.arange(n + 1)
            return scipy.stats.poisson_binom(confidence).pmf(hits) @ np.abs(hits - confidence.sum()) / n

        def transforms():
            """Of the tree of products: from pairs of two coefficients, padded to four, to one pair of n."""
            length = 4
            while length <= 2 * n:
                pairs = np.zeros((2 * n // length, 2, length))
                scipy.fft.irfft(scipy.fft.rfft(pairs).prod(axis=1), length)
                length *= 2

        return Work(
            ours=lambda: information.reliability(confidence, correct, 1).null_mean,
            peers={"scipy poisson_binom": poisson_binomial},
            floor=transforms,
        )

    compare(
        "Calibration error that chance leaves in one bin",
        make,
        (4_096, 16_384, 65_536, 262_144),
        at=4_096,
        unit="forecasts",
        agree=Close(rtol=1e-9),
        floor="the Fourier transforms",
        growth="n ln n",
        reason="at 4,096 forecasts two fifths of the time are the fixed cost of 12 calls of fftconvolve.",
    )
