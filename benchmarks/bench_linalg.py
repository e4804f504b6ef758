"""Matrix decompositions."""

import numpy as np
import scipy.linalg
import scipy.sparse.linalg
from comparison import Agreement, Work
from sklearn.decomposition import TruncatedSVD
from sklearn.utils.extmath import randomized_svd

from coursekit import linalg

RANK = 20


def decaying(n, d):
    """A matrix of n rows and d columns with singular values near √n/j, j = 1, 2, …"""
    rng = np.random.default_rng(0)
    rotation = np.linalg.qr(rng.standard_normal((d, d))).Q
    return rng.standard_normal((n, d)) / np.arange(1, d + 1) @ rotation


def check_terms(ours, theirs):
    U, s, Vt = theirs
    np.testing.assert_allclose(ours.s, np.sort(s)[::-1][:RANK], rtol=1e-10)
    gap = np.linalg.norm(ours.reconstruct() - (U[:, :RANK] * s[:RANK]) @ Vt[:RANK])
    assert gap <= 1e-8 * ours.s[0], gap


def bench_truncated_svd(compare):
    def make(n):
        A = decaying(n, 100)

        def sklearn():
            model = TruncatedSVD(RANK, algorithm="arpack", random_state=0)
            scores = model.fit_transform(A)
            return scores / model.singular_values_, model.singular_values_, model.components_

        return Work(
            ours=lambda: linalg.svd(A, RANK),
            peers={
                "scipy svds, ARPACK": lambda: scipy.sparse.linalg.svds(A, RANK, rng=0),
                "scipy svds, PROPACK": lambda: scipy.sparse.linalg.svds(A, RANK, solver="propack", rng=0),
                "scikit-learn TruncatedSVD, ARPACK": sklearn,
                "scipy svd, in full": lambda: scipy.linalg.svd(A, full_matrices=False, check_finite=False),
            },
            floor=lambda: A.T @ A,
        )

    compare(
        f"Truncated SVD: {RANK} terms of n × 100",
        make,
        (8_000, 16_000, 32_000, 64_000, 128_000),
        at=32_000,
        unit="rows",
        agree=Agreement("singular values rtol 1e-10, U S Vᵀ 1e-8", check_terms),
        floor="the product AᵀA",
        growth="n",
        reason="all digits are wanted here, so the leading terms come from a QR decomposition. Vectors taken from the "
        "floor, AᵀA, would lose a factor s₁/sₖ; who can spare digits has the randomized method of the next row.",
    )


def check_error(ours, theirs):
    """The squared error of a projection is what the squared singular values leave of ‖A‖²."""
    errors = [np.sqrt(ours.squared_norm - np.sum(s**2)) for s in (ours.s, theirs[1])]
    np.testing.assert_allclose(*errors, rtol=1e-5)


def bench_randomized_svd(compare):
    oversample, n_iter = 20, 3  # our defaults

    def make(n):
        A = decaying(n, 500)
        start = np.random.default_rng(0).standard_normal((500, RANK + oversample))

        def products():
            V = start
            for _ in range(n_iter + 1):
                V = ((A @ V).T @ A).T

        return Work(
            ours=lambda: linalg.randomized_svd(A, RANK, rng=0),
            peers={
                # of all n_iter, this one's error is the nearest to ours: 8e-6 above the optimum, ours 5e-6
                "scikit-learn randomized_svd, n_iter 4": lambda: randomized_svd(A, RANK, n_iter=4, random_state=0),
                "scipy svds, ARPACK, tol 1": lambda: scipy.sparse.linalg.svds(A, RANK, tol=1.0, rng=0),
                "scipy svds, LOBPCG, tol 0.1": lambda: scipy.sparse.linalg.svds(
                    A, RANK, tol=0.1, solver="lobpcg", rng=0
                ),
            },
            floor=products,
        )

    compare(
        f"Randomised SVD: {RANK} terms of n × 500",
        make,
        (1_000, 2_000, 4_000, 8_000, 16_000),
        at=4_000,
        unit="rows",
        agree=Agreement("error of the approximation rtol 1e-5", check_error),
        floor=f"the {2 * n_iter + 2} products with A",
        growth="n",
    )
