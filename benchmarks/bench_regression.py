"""Logistic regression."""

import numpy as np
from comparison import Close, Work
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from coursekit import regression

N_FEATURES = 20


def bench_logistic_regression(compare):
    def make(n):
        rng = np.random.default_rng(n)
        X, w = rng.standard_normal((n, N_FEATURES)), rng.standard_normal(N_FEATURES) / 2
        y = (rng.random(n) < expit(X @ w)).astype(float)
        Phi = np.column_stack([np.ones(n), X])
        steps = [np.append(0.0, t * w) for t in np.linspace(0, 1, regression.logistic_regression(X, y).n_iter + 1)]

        def ours():
            fit = regression.logistic_regression(X, y)
            return np.append(fit.w, fit.b)

        def sklearn(solver):
            model = LogisticRegression(C=np.inf, solver=solver, tol=1e-8, max_iter=1000).fit(X, y)
            return np.append(model.coef_, model.intercept_)

        def newton():
            for theta in steps:
                logits = Phi @ theta
                p = expit(logits)
                np.logaddexp(0.0, logits).mean(), (p - y) @ Phi, (Phi.T * (p * (1 - p))) @ Phi

        return Work(
            ours=ours,
            peers={
                "scikit-learn, Newton–Cholesky": lambda: sklearn("newton-cholesky"),
                "scikit-learn, L-BFGS": lambda: sklearn("lbfgs"),
            },
            floor=newton,
        )

    compare(
        f"Logistic regression on {N_FEATURES} features, no penalty",
        make,
        (2_000, 4_000, 8_000, 16_000, 32_000),
        unit="samples",
        agree=Close(rtol=0, atol=1e-6),
        floor="loss, gradient and Hessian at every Newton step",
        growth="n",
        reason="some 40 % of the time makes the features orthonormal, so that scale and collinearity do not matter; "
        "L-BFGS needs a dozen gradients where Newton's method forms seven Hessians. What is gained is a minimum to "
        "rounding (L-BFGS: 1e-8) and the proof that it exists.",
    )
