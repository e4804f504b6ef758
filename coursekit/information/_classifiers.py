"""What a classifier's probabilities are worth: uncertainty, information about the label, temperature, calibration."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.optimize
import scipy.signal
from jaxtyping import Bool, Float, Int
from scipy.special import entr, xlogy

from coursekit._validation import as_array, as_integer
from coursekit.information._arguments import Values, class_numbers, log_array, log_pmf, pmf, unit_of
from coursekit.information._measures import divergence_from_mean, entropy_from_logs, mutual_information_of


@dataclass(frozen=True)
class Uncertainty:
    """Uncertainty of an ensemble's forecast: total = aleatoric + epistemic."""

    total: Values
    """H(p̄), entropy of the mean forecast."""
    aleatoric: Values
    """Mean of the members' entropies: what they all call noise."""
    epistemic: Values
    """Mean of KL(p_m‖p̄) = I(outcome; member): their disagreement."""


def predictive_uncertainty(p: Float[np.ndarray, "members *batch k"], base: float | None = None) -> Uncertainty:
    """Entropy of an ensemble's mean forecast, split into the members' own entropy and their disagreement.

    Parameters
    ----------
    p : (n_members, ..., k) array
        Forecasts of each member, e.g. networks of other seeds, or passes with dropout.
    base : float > 1, optional

    Raises ValueError if p is negative, not finite, does not sum to 1 or has fewer than two axes.
    Source: Houlsby et al., arXiv:1112.5745 (2011); Chertkov §6.2.1.  Taught in: notebook 06_02b.
    """
    p, unit = pmf("p", as_array("p", p, ndim=range(2, 65))), unit_of(base)
    total, aleatoric = entr(p.mean(axis=0)).sum(axis=-1), entr(p).sum(axis=-1).mean(axis=0)
    return Uncertainty(total / unit + 0.0, aleatoric / unit + 0.0, divergence_from_mean(p) / unit)


@dataclass(frozen=True)
class ClassifierInformation:
    """What a classifier knows of the label, by three estimates; only two of them are bounds."""

    label_entropy: float
    """H(Y) of the labels given."""
    predictive_entropy: float
    """Mean entropy of the forecasts."""
    cross_entropy: float
    """Mean of -log p(y|x); less the predictive entropy it is the calibration gap."""
    plug_in: float
    """H(Y) - predictive entropy: I(Y; forecast) ≤ I(X;Y) if the forecasts are calibrated, no bound if they are not."""
    variational: float
    """H(Y) - cross-entropy ≤ I(X;Y) for every forecast (in the mean over the labels); -inf if a label was ruled out."""
    confusion: float
    """I(Y;Ŷ) of the confusion matrix: at most I(X;Y), by data processing."""
    fano: float
    """H(Y) - h₂(e) - e log(k - 1) ≤ I(Y;Ŷ), e the fraction of errors."""


def classifier_information(
    log_p: Float[np.ndarray, "n k"], y: Int[np.ndarray, " n"], base: float | None = None
) -> ClassifierInformation:
    """Three estimates of the information I(X;Y) that a classifier has found about the label, from labelled examples.

    Parameters
    ----------
    log_p : (n, k) log-probabilities
        Forecasts, e.g. log_softmax(logits); -inf stands for probability zero.
    y : (n,) class numbers 0..k - 1
    base : float > 1, optional

    Raises ValueError if log_p is not normalised, holds NaN or +inf, or y has other values or another length.
    Source: Chertkov §6.2.2; Barber and Agakov, NIPS (2003).  Taught in: notebook 06_02b.
    """
    log_p, unit = log_pmf("log_p", log_p, ndim=2), unit_of(base)
    n, k = log_p.shape
    y, guess = class_numbers(y, n, k), log_p.argmax(axis=-1)
    confusion = np.bincount(y * k + guess, minlength=k * k).reshape(k, k) / n
    H = entr(confusion.sum(axis=1)).sum() + 0.0
    predictive = np.mean(entropy_from_logs(log_p))
    loss = -log_p[np.arange(n), y].mean()
    error = np.mean(guess != y)
    fano = H - entr(error) - entr(1 - error) - xlogy(error, k - 1)
    values = (H, predictive, loss, H - predictive, H - loss, mutual_information_of(confusion), fano)
    return ClassifierInformation(*(float(value / unit + 0.0) for value in values))


@dataclass(frozen=True)
class TemperatureFit:
    """Temperature of least cross-entropy, and its standard error (NaN at the ends 0 and inf)."""

    temperature: float
    std_error: float


def fit_temperature(logits: Float[np.ndarray, "n k"], y: Int[np.ndarray, " n"]) -> TemperatureFit:
    """Temperature that calibrates a classifier: p_T ∝ exp(z/T) with the least mean of -log p_T(y|x).

    In β = 1/T the loss is convex: its derivative is the mean of E_β[z] - z_y, that of E_β[z] is Var_β[z] ≥ 0. So the
    minimum is where the derivative changes sign. It is T = 0 if every label has the largest logit of its row, T = inf
    if the labels' logits are on average no larger than the others. The standard error is that of an M-estimator,
    sd(E_β[z] - z_y)/(√n mean Var_β[z]) for β. Fit on other examples than those that judge the result.

    Parameters
    ----------
    logits : (n, k) array
        Logits or log-probabilities; -inf stands for probability zero at every temperature.
    y : (n,) class numbers 0..k - 1

    Raises ValueError if logits holds NaN or +inf, a label's logit is -inf, or y does not match.
    Source: Guo et al., ICML (2017); Chertkov §6.2.1.  Taught in: notebook 06_02b.
    """
    z = log_array("logits", logits, ndim=2)
    n, k = z.shape
    y = class_numbers(y, n, k)
    if np.isneginf(z[np.arange(n), y]).any():
        raise ValueError("logits of the labels must be finite, got -inf: the loss is infinite at every temperature")
    possible = np.isfinite(z)
    z = np.where(possible, z - z.max(axis=-1, keepdims=True), 0.0)
    scale = -z.min() or 1.0
    z /= scale
    z_y = z[np.arange(n), y]

    def moments(beta):
        """Of z in each row at the inverse temperature β: mean - z_y, variance."""
        p = np.exp(beta * z) * possible
        p /= p.sum(axis=-1, keepdims=True)
        mean = (p * z).sum(axis=-1)
        return mean - z_y, (p * np.square(z - mean[:, None])).sum(axis=-1)

    def slope(beta):
        return moments(beta)[0].mean()

    if slope(0.0) >= 0:
        return TemperatureFit(np.inf, np.nan)
    if (z_y == 0).all():
        return TemperatureFit(0.0, np.nan)
    high = 1.0
    while slope(high) < 0:
        high *= 2
    beta = scipy.optimize.brentq(slope, 0.0, high, xtol=1e-300, rtol=1e-15)
    gradient, variance = moments(beta)
    error = np.sqrt(np.mean(gradient**2) / n) / variance.mean()
    return TemperatureFit(scale / beta, float(scale * error / beta**2))


@dataclass(frozen=True)
class Reliability:
    """Confidence against accuracy in bins (NaN in empty ones), and how far apart chance alone would bring them."""

    edges: Float[np.ndarray, " n_edges"]
    """One more than there are bins; a bin holds its upper edge, the first also its lower one."""
    count: Int[np.ndarray, " bins"]
    confidence: Float[np.ndarray, " bins"]
    """Mean confidence in the bin."""
    accuracy: Float[np.ndarray, " bins"]
    std_error: Float[np.ndarray, " bins"]
    """Standard deviation of the accuracy if the forecasts are calibrated: √Σc(1 - c)/count."""
    ece: float
    """Expected calibration error, Σ (count/n)|accuracy - confidence|."""
    null_mean: float
    """Mean of the ece of a calibrated forecast with these confidences; not zero, because |·| does not average out."""
    null_std: float


def reliability(
    confidence: Float[np.ndarray, " n"],
    correct: Bool[np.ndarray, " n"] | Int[np.ndarray, " n"],
    bins: int | Sequence[float] | Float[np.ndarray, " edges"] = 10,
) -> Reliability:
    """Reliability diagram and expected calibration error, with its law for a forecast that is calibrated.

    Then the number of hits in a bin is a sum of independent Bernoulli(cᵢ) variables; its law is the product of the
    polynomials 1 - cᵢ + cᵢz, and gives E|hits - Σcᵢ| exactly. Time O(n log² n), memory O(n).

    Parameters
    ----------
    confidence : (n,) probabilities given to the events, e.g. the largest of each forecast
    correct : (n,) of 0 and 1: whether the events came true
    bins : int ≥ 1, or increasing edges
        A number stands for bins of equal width. A bin holds its upper edge, the first also its lower one.

    Raises ValueError if confidences are outside [0, 1] or the edges, correct is not of 0 and 1, or lengths differ.
    Source: Guo et al., ICML (2017); Bröcker and Smith, Weather and Forecasting 22 (2007); Chertkov §6.1.4.
    Taught in: notebook 06_02b.
    """
    c = as_array("confidence", confidence, ndim=1)
    hit = as_array("correct", correct, ndim=1, shape=c.shape)
    if c.min() < 0 or c.max() > 1:
        raise ValueError(f"confidence must be between 0 and 1, got {c.min():g} to {c.max():g}")
    if not np.isin(hit, (0, 1)).all():
        raise ValueError(f"correct must hold 0 and 1 only, got values from {hit.min():g} to {hit.max():g}")
    edges = (
        np.linspace(0, 1, as_integer("bins", bins, low=1) + 1) if np.ndim(bins) == 0 else as_array("bins", bins, ndim=1)
    )
    if len(edges) < 2 or (np.diff(edges) <= 0).any() or edges[0] > c.min() or edges[-1] < c.max():
        raise ValueError(f"bins must be increasing edges around all confidences, got {edges}")
    index, n_bins = np.searchsorted(edges[1:-1], c), len(edges) - 1
    count = np.bincount(index, minlength=n_bins)
    expected, hits, variance = (np.bincount(index, x, minlength=n_bins) for x in (c, hit, c * (1 - c)))
    deviation = np.array([_mean_absolute_deviation(c[index == b]) for b in range(n_bins)])
    per_bin = np.where(count > 0, count, np.nan)
    return Reliability(
        edges,
        count,
        expected / per_bin,
        hits / per_bin,
        np.sqrt(variance) / per_bin,
        float(np.abs(hits - expected).sum() / len(c)),
        float(deviation.sum() / len(c)),
        float(np.sqrt(np.maximum(variance - deviation**2, 0).sum()) / len(c)),
    )


def _mean_absolute_deviation(c):
    """E|S - Σc| of a sum S of independent Bernoulli(c) variables."""
    factors = np.tile([1.0, 0.0], (1 << max(len(c) - 1, 0).bit_length(), 1))
    factors[: len(c)] = np.column_stack([1 - c, c])
    while len(factors) > 1:  # multiply neighbours
        factors = scipy.signal.fftconvolve(factors[::2], factors[1::2], axes=1)
    return factors[0] @ np.abs(np.arange(factors.shape[1]) - c.sum())
