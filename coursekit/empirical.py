"""From samples to a law: the empirical distribution function, kernel density estimates and their exact error,
histograms tested against exact bin probabilities.

The kernel is the Gaussian K_h(x) = exp(-x²/2h²)/(h √2π) throughout; h is its standard deviation.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import scipy.fft
import scipy.integrate
import scipy.optimize
import scipy.special
from jaxtyping import Float, Int

from coursekit._validation import ConvergenceWarning, as_array, as_integer, as_number, one_of

CDF = Callable[[Any], Any]
FINE = 32  # grid points a bandwidth, for sums in Fourier space
REACH = 8  # the kernel is cut there, in bandwidths: exp(-REACH²/2) = 1e-14


# --- the empirical distribution function -----------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ECDF:
    """Empirical distribution function: F̂(q) = #{i : xᵢ ≤ q}/n, a right-continuous staircase. Call it with points."""

    x: Float[np.ndarray, " m"]
    """Where it jumps: the m ≤ n distinct values of the sample, ascending."""
    F: Float[np.ndarray, " m"]
    """Values there, the last is 1."""
    n: int
    """Size of the sample."""

    def __call__(self, q: Float[np.ndarray, "..."] | float) -> Float[np.ndarray, "..."] | float:
        """F̂ at points q of any shape; they may be infinite."""
        if np.isnan(q).any():
            raise ValueError("q must not contain NaN")
        return np.concatenate([[0.0], self.F])[np.searchsorted(self.x, q, side="right")]

    def band(self, confidence: float = 0.95) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
        """Lower and upper end, at x, of a band that contains all of F with at least this probability, for every n.

        F̂ ± ε cut to [0, 1], with the ε of `dkw_halfwidth`. Left of x[0] the band is [0, ε].
        """
        halfwidth = dkw_halfwidth(self.n, confidence)
        return np.maximum(self.F - halfwidth, 0.0), np.minimum(self.F + halfwidth, 1.0)


def ecdf(x: Float[np.ndarray, " n"]) -> ECDF:
    """Empirical distribution function of a sample; Var F̂(q) = F(q)(1 - F(q))/n.

    Raises ValueError if x is empty, not finite or not one-dimensional.
    Source: Chertkov §5.1.4.  Taught in: notebook 05_02.
    """
    values, counts = np.unique(as_array("x", x, ndim=1), return_counts=True)
    reached = np.cumsum(counts)
    return ECDF(values, reached / reached[-1], int(reached[-1]))


def dkw_halfwidth(n: int, confidence: float = 0.95) -> float:
    """ε = (ln(2/α)/2n)^½ for α = 1 - confidence: P(sup|F̂ - F| > ε) ≤ 2 exp(-2nε²) = α, whatever the law F.

    Raises ValueError unless n ≥ 1 and 0 < confidence < 1.
    Source: Dvoretzky, Kiefer and Wolfowitz (1956), with the constant of Massart (1990).  Taught in: notebook 05_02.
    """
    n = as_integer("n", n, low=1)
    confidence = as_number("confidence", confidence, low=0, strict=True)
    if confidence >= 1:
        raise ValueError(f"confidence must be less than 1, got {confidence:g}")
    return math.sqrt(math.log(2 / (1 - confidence)) / (2 * n))


def ks_distance(x: Float[np.ndarray, " n"], cdf: CDF) -> float:
    """Kolmogorov–Smirnov distance D = sup |F̂ - F| of a sample from a law, which may have atoms.

    Between two neighbouring values of the sample F̂ is constant and F grows, so the supremum is at a jump of F̂, from
    the right or from the left: D = maxᵢ max(|F̂(xᵢ) - F(xᵢ)|, |F̂(xᵢ-) - F(xᵢ-)|). For continuous F, √n D tends to
    Kolmogorov's law, of mean √(π/2) ln 2 = 0.8687.

    Parameters
    ----------
    x : (n,) sample
    cdf : callable
        F, right-continuous, of arrays. It is also called at the next smaller float, which gives F(x-) at an atom.

    Raises ValueError if x is empty or not finite, or cdf gives other than non-decreasing probabilities of its shape.
    Source: Chertkov §5.1.4.  Taught in: notebook 05_02.
    """
    empirical = ecdf(x)
    right = _probabilities(cdf, empirical.x)
    left = _probabilities(cdf, np.nextafter(empirical.x, -np.inf))
    before = np.concatenate([[0.0], empirical.F[:-1]])
    return float(max(np.abs(empirical.F - right).max(), np.abs(before - left).max()))


def _probabilities(cdf: CDF, x: np.ndarray) -> np.ndarray:
    """cdf(x) for ascending x, checked to be that of a distribution function."""
    F = np.asarray(cdf(x), dtype=float)
    if F.shape != x.shape:
        raise ValueError(f"cdf(x) must have the shape {x.shape} of x, got {F.shape}")
    # differences of special functions are monotone up to rounding only; `not` catches NaN
    if not ((F >= -1e-12) & (F <= 1 + 1e-12)).all() or (np.diff(F) < -1e-12).any():
        raise ValueError("cdf must give non-decreasing probabilities between 0 and 1")
    return np.maximum.accumulate(np.clip(F, 0.0, 1.0))


# --- histograms ------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class HistogramTest:
    """Counts of a sample against those its law predicts, bin by bin and as a whole."""

    counts: Int[np.ndarray, " bins"]
    expected: Float[np.ndarray, " bins"]
    """n (F(b) - F(a)) for the bin (a, b]."""
    z: Float[np.ndarray, " bins"]
    """(counts - expected) / (n p (1 - p))^½; 0 for a count that is certain, ±∞ for one that is impossible."""
    chi2: float
    dof: int
    p_value: float


def histogram_test(
    x: Float[np.ndarray, " n"], edges: Float[np.ndarray, " edges"], cdf: CDF, *, min_expected: float = 5.0
) -> HistogramTest:
    """Do the bin counts of a sample follow a law? Exact for any bins: they are compared with bin probabilities.

    The density in the middle of a bin is no substitute: for χ²₁ and the bin (0, 0.1] it is 30 % too low. Bins are
    (a, b], as differences of F are, so that atoms on an edge are counted where they belong. What falls outside the
    edges enters χ² = Σ (counts - expected)²/expected as two further bins; neighbours are pooled from the left until
    they expect at least `min_expected`, and dof is the number of pools less one.

    Parameters
    ----------
    x : (n,) sample
    edges : (bins + 1,) increasing
    cdf : callable
        F, right-continuous, of arrays.
    min_expected : float > 0

    Raises ValueError if x or edges are malformed, cdf is not a distribution function at the edges, or so few counts
    are expected that there are no two pools.
    Source: Chertkov §5.1.5 (where there are histograms only).  Taught in: notebook 05_02.
    """
    x, edges = as_array("x", x, ndim=1), as_array("edges", edges, ndim=1)
    if len(edges) < 2 or not (np.diff(edges) > 0).all():
        raise ValueError(f"edges must be at least two increasing numbers, got {edges}")
    min_expected = as_number("min_expected", min_expected, low=0, strict=True)
    p = np.diff(_probabilities(cdf, edges), prepend=0.0, append=1.0)  # the tails first and last
    counts = np.diff(np.searchsorted(np.sort(x), edges, side="right"), prepend=0, append=len(x))
    expected = len(x) * p
    pooled, remainder = [], np.zeros(2)
    for pair in np.column_stack([counts, expected]):
        remainder = remainder + pair
        if remainder[1] >= min_expected:
            pooled.append(remainder)
            remainder = np.zeros(2)
    if len(pooled) < 2:
        raise ValueError(f"edges must leave two bins that expect {min_expected:g} of {len(x)} samples, got fewer")
    pooled[-1] = pooled[-1] + remainder
    observed, predicted = np.array(pooled).T
    chi2, dof = float(((observed - predicted) ** 2 / predicted).sum()), len(pooled) - 1
    deviation, spread = (counts - expected)[1:-1], np.sqrt(expected * (1 - p))[1:-1]
    impossible = np.where(deviation == 0, 0.0, np.copysign(np.inf, deviation))
    z = np.divide(deviation, spread, out=impossible, where=spread > 0)
    return HistogramTest(counts[1:-1], expected[1:-1], z, chi2, dof, float(scipy.special.chdtrc(dof, chi2)))


# --- kernel density estimates ----------------------------------------------------------------------------


def kde(
    x: Float[np.ndarray, " n"],
    grid: Float[np.ndarray, " m"],
    bandwidth: Literal["silverman", "scott"] | float = "silverman",
    method: Literal["fft", "direct"] = "fft",
) -> Float[np.ndarray, " m"]:
    """Kernel density estimate p̂(g) = (1/n) Σᵢ K_h(g - xᵢ) at the points of a grid.

    "direct" is the sum, O(nm). "fft", O(n) for any grid, spreads each xᵢ linearly over the two nearest points of a grid
    of spacing δ ≤ h/32 and multiplies by exp(-h²t²/2) in Fourier space. Linear binning puts the interpolant of K_h in
    its place, which is wrong by (δ²/2) θ(1 - θ) K_h'' at a fraction θ between two points; that is summed too and taken
    off, which leaves 0.011 (δ/h)³ < 4e-7 of the peak at most. It is an absolute error: far in the tails use "direct".
    The fine grid reaches 8 h beyond the one asked for; if it takes more than 2²² points, the direct sum is formed.

    Parameters
    ----------
    x : (n,) sample
        Also outside the grid.
    grid : (m,)
        For "fft" at least two, increasing and evenly spaced; any points for "direct".
    bandwidth : {"silverman", "scott"} or float > 0
        The rules `silverman_bandwidth` and `scott_bandwidth`, or h itself (not the factor that scipy takes).
    method : {"fft", "direct"}

    Raises ValueError if an argument is malformed, or a rule meets a sample without spread.
    Source: Chertkov §5.2.2, eqs. (5.2) and (5.3); Silverman, Density Estimation (1986), §3.5.
    Taught in: notebook 05_02b.
    """
    x, grid = as_array("x", x, ndim=1), as_array("grid", grid, ndim=1)
    one_of("method", method, ("fft", "direct"))
    if isinstance(bandwidth, str):
        rules = {"silverman": silverman_bandwidth, "scott": scott_bandwidth}
        h = rules[one_of("bandwidth", bandwidth, tuple(rules))](x)
    else:
        h = as_number("bandwidth", bandwidth, low=0, strict=True)
    return _kde_fft(x, grid, h) if method == "fft" else _kde_direct(x, grid, h)


def _kde_direct(x: np.ndarray, grid: np.ndarray, h: float) -> np.ndarray:
    x = np.sort(x)
    density = np.empty(len(grid))
    rows = max(1, 2**17 // len(x))  # a block of 1 MB stays in the cache
    for first in range(0, len(grid), rows):
        block = grid[first : first + rows]
        near = slice(*np.searchsorted(x, [block.min() - 39 * h, block.max() + 39 * h]))  # exp(-39²/2) is 0 in float64
        z = (block[:, None] - x[near]) / h
        density[first : first + rows] = np.exp(-0.5 * z * z).sum(axis=1)
    return density / (len(x) * h * math.sqrt(2 * math.pi))


def _kde_fft(x: np.ndarray, grid: np.ndarray, h: float) -> np.ndarray:
    step = (grid[-1] - grid[0]) / max(len(grid) - 1, 1)
    uneven = np.abs(grid - (grid[0] + step * np.arange(len(grid)))).max()
    if step <= 0 or uneven > 1e-7 * h + 4 * np.spacing(np.abs(grid).max()):
        raise ValueError("grid must be at least two increasing, evenly spaced points for method 'fft'; or use 'direct'")
    # binned with spacing delta, read out with spacing pitch, which is enough as no wave is left beyond 9/h
    stride = math.ceil(3 * step / h)
    pitch = step / stride
    refine = math.floor(FINE * pitch / h) + 1
    delta = pitch / refine
    margin = math.ceil(REACH * h / pitch) + 1
    size = (len(grid) - 1) * stride + 2 * margin + 1
    if size * refine > 2**22:
        return _kde_direct(x, grid, h)
    size = scipy.fft.next_fast_len(size, real=True)
    low, high = grid[0] - margin * pitch, grid[-1] + (margin - 0.5) * pitch
    near = x if x.min() >= low and x.max() <= high else x[(x >= low) & (x <= high)]
    t, waves = _waves(near, low, delta, size * refine, h)
    density = scipy.fft.irfft(waves * np.exp(-0.5 * (h * t) ** 2), size) / (len(x) * pitch)
    density = density[margin : margin + len(grid) * stride : stride][: len(grid)]
    return np.maximum(density, 0.0)  # rounding leaves ±1e-17 where there is nothing


def _waves(x: np.ndarray, origin: float, delta: float, size: int, h: float) -> tuple[np.ndarray, np.ndarray]:
    """t = 2πk/(size·delta) up to 9/h, where K_h has died out, and Σⱼ exp(-it(xⱼ - origin)), by linear binning."""
    count, first, second = np.zeros((3, size))  # Σ 1, Σ θ, Σ θ² of the cells
    for start in range(0, len(x), 2**16):  # so many at once stay in the cache
        theta = (x[start : start + 2**16] - origin) * (1 / delta)
        cell = theta.astype(np.intp)
        theta = theta - cell
        count += np.bincount(cell, minlength=size)
        first += np.bincount(cell, theta, size)
        second += np.bincount(cell, theta * theta, size)
    mass = count - first + np.roll(first, 1)
    n_waves = min(size // 2, math.ceil(9 * delta / h * size / (2 * math.pi))) + 1
    omega = 2 * math.pi / size * np.arange(n_waves)
    waves, bend = scipy.fft.rfft(np.stack([mass, first - second]))[:, :n_waves]
    # binning adds θ(1 - θ)/2 of the second derivative, -ω² here, taken in the middle of the cell
    return omega / delta, waves + 0.5 * omega**2 * np.exp(-0.5j * omega) * bend


# --- bandwidths ------------------------------------------------------------------------------------------


def silverman_bandwidth(x: Float[np.ndarray, " n"]) -> float:
    """Silverman's rule of thumb h = 0.9 min(σ, IQR/1.34) n^(-1/5); scipy gives the name to 1.06 σ n^(-1/5).

    σ has the divisor n - 1. Where more than half of the sample is tied and the IQR is 0, σ alone is used.
    Raises ValueError if x is malformed or has no two different values.
    Source: Silverman, Density Estimation (1986), eq. (3.31).  Taught in: notebook 05_02b.
    """
    return 0.9 * _spread(x, robust=True) * len(x) ** -0.2


def scott_bandwidth(x: Float[np.ndarray, " n"]) -> float:
    """Scott's normal reference rule h = 1.06 σ n^(-1/5): the best for a Gaussian law, too smooth for most others.

    σ has the divisor n - 1. scipy gives the name to σ n^(-1/5).
    Raises ValueError if x is malformed or has no two different values.
    Source: Scott, Multivariate Density Estimation (1992), eq. (6.17).  Taught in: notebook 05_02b.
    """
    return 1.06 * _spread(x) * len(x) ** -0.2


def _spread(x, robust: bool = False) -> float:
    x = as_array("x", x, ndim=1)
    spread = x.std(ddof=1) if len(x) > 1 else 0.0
    if not np.ptp(x) > 0 or not 0 < spread < np.inf:
        raise ValueError(f"x must have two different values for a bandwidth rule, got {len(x)} equal one(s)")
    if robust:
        low, high = np.quantile(x, [0.25, 0.75])
        spread = min(spread, (high - low) / 1.34) if high > low else spread
    return float(spread)


def lscv(x: Float[np.ndarray, " n"], bandwidths: Float[np.ndarray, " k"]) -> Float[np.ndarray, " k"]:
    """Least-squares cross-validation: an unbiased estimate of MISE(h) - ∫p², from the sample alone.

    ∫p̂² - (2/n) Σᵢ p̂₋ᵢ(xᵢ), p̂₋ᵢ the estimate without xᵢ. For the Gaussian kernel this is
    1/(2√π n h) + (1 - 1/n) Q̂(√2 h) - 2 Q̂(h), with Q̂(s) the mean of K_s(xᵢ - xⱼ) over all pairs i ≠ j.
    The pairs are summed in Fourier space on a grid of spacing h/32, O(n + range/h) a bandwidth.

    Raises ValueError if x has fewer than two values, or a bandwidth is not positive or needs more than 2²⁴ grid points.
    Source: Rudemo (1982); Bowman (1984); Silverman (1986), §3.4.3.  Taught in: notebook 05_02b.
    """
    x, h = np.sort(as_array("x", x, ndim=1)), as_array("bandwidths", bandwidths, ndim=1)
    n = len(x)
    if n < 2:
        raise ValueError("x must have at least two values to leave one out, got 1")
    if not (h > 0).all():
        raise ValueError(f"bandwidths must be greater than 0, got {h.min():g}")
    wide, narrow = np.transpose([_pair_overlaps(x, float(s)) for s in h])
    return 1 / (2 * math.sqrt(math.pi) * n * h) + (1 - 1 / n) * wide - 2 * narrow


def _pair_overlaps(x: np.ndarray, h: float) -> tuple[float, float]:
    """Mean of K_s(xᵢ - xⱼ) over i ≠ j for s = √2 h and h, x ascending."""
    n, gap = len(x), 1.5 * REACH * h
    # wider gaps are narrowed: no kernel spans them, and outliers cost no grid
    x = np.concatenate([[0.0], np.cumsum(np.minimum(np.diff(x), gap))])
    delta = h / FINE
    length = math.ceil((x[-1] + gap) / delta)
    if length > 2**24:
        raise ValueError(
            f"bandwidths must not be so small against the range of x that 2²⁴ points are passed, got {h:g}"
        )
    size = scipy.fft.next_fast_len(length, real=True)
    t, waves = _waves(x, 0.0, delta, size, h)
    power = np.abs(waves) ** 2 / (size * delta)
    power[1:] *= 2  # negative frequencies
    overlaps = []
    for s in (math.sqrt(2) * h, h):
        total = np.sum(power * np.exp(-0.5 * (s * t) ** 2))
        overlaps.append((total - n / (s * math.sqrt(2 * math.pi))) / (n * (n - 1)))
    return overlaps[0], overlaps[1]


def cv_bandwidth(x: Float[np.ndarray, " n"]) -> float:
    """The bandwidth that minimises `lscv`; nothing is assumed of the law, at the price of a noisy h.

    Searched between 0.01 and 3 times 1.144 min(σ, IQR/1.34) n^(-1/5), of which the factor 1 is already too smooth
    for every law of that spread (Terrell 1990). A minimum at an end is returned with a ConvergenceWarning: rounded
    data have ties, and then lscv falls without bound for h → 0.

    Raises ValueError if x is malformed or has no two different values.
    Source: Silverman (1986), §3.4.3.  Taught in: notebook 05_02b.
    """
    center = 1.144 * _spread(x, robust=True) * len(x) ** -0.2
    trial = center * np.geomspace(0.01, 3, 58)  # 10 % apart
    score = lscv(x, trial)
    best = int(score.argmin())
    if best in (0, len(trial) - 1):
        warnings.warn(
            f"cross-validation is best at the end h = {trial[best]:.3g} of its range; "
            f"{len(x) - len(np.unique(x))} of {len(x)} values are ties",
            ConvergenceWarning,
            stacklevel=2,
        )
        return float(trial[best])
    around = scipy.optimize.minimize_scalar(
        lambda u: float(lscv(x, np.exp([u]))[0]), bounds=np.log(trial[[best - 1, best + 1]]), method="bounded"
    )
    return float(np.exp(around.x))


# --- the exact error of a kernel density estimate --------------------------------------------------------


@dataclass(frozen=True, eq=False)
class MISE:
    """Mean integrated squared error E ∫(p̂ - p)² of an estimate and its two parts, one value a bandwidth."""

    squared_bias: Float[np.ndarray, "*h"] | float
    variance: Float[np.ndarray, "*h"] | float

    @property
    def total(self) -> Float[np.ndarray, "*h"] | float:
        return self.squared_bias + self.variance


def kde_mise(bandwidth: Float[np.ndarray, "*h"] | float, n: int, overlap: Callable[[Any], Any]) -> MISE:
    """Exact mean integrated squared error of `kde` for n samples of a known law.

    All follows from the overlap Q(s) = ∬ p(x) p(y) K_s(x - y) dx dy of the law with itself:
    ∫bias² = Q(√2 h) - 2Q(h) + Q(0) and ∫variance = 1/(2√π n h) - Q(√2 h)/n.
    The bias is a difference of numbers of size Q(0), good to 1e-15 of them.

    Parameters
    ----------
    bandwidth : array of any shape, > 0
    n : int ≥ 1
    overlap : callable
        Q, of arrays: `distributions.NormalMixture.overlap` in closed form, or `overlap_from_cf`.

    Raises ValueError if a bandwidth is not positive, or Q is not positive and decreasing from Q(0).
    Source: Marron and Wand, Ann. Statist. 20 (1992), theorem 2.1; Chertkov §5.2.2.  Taught in: notebook 05_02b.
    """
    h, n = as_array("bandwidth", bandwidth, ndim=range(9)), as_integer("n", n, low=1)
    if not (h > 0).all():
        raise ValueError(f"bandwidth must be greater than 0, got {h.min():g}")
    s = np.concatenate([[0.0], h.ravel(), math.sqrt(2) * h.ravel()])
    Q = np.asarray(overlap(s), dtype=float)
    if Q.shape != s.shape or not (Q > 0).all() or (Q / Q[0] > 1 + 1e-9).any():
        raise ValueError("overlap must give positive numbers, none above overlap(0), of the shape of its argument")
    narrow, wide = Q[1:].reshape(2, *h.shape)
    return MISE(wide - 2 * narrow + Q[0], 1 / (2 * math.sqrt(math.pi) * n * h) - wide / n)


def overlap_from_cf(cf: Callable[[Any], Any], roughness: float) -> Callable[[Any], Any]:
    """The overlap Q of `kde_mise` from a characteristic function φ(t) = E exp(itX).

    Q(s) = (1/2π) ∫ |φ(t)|² exp(-s²t²/2) dt by adaptive quadrature, and Q(0) = roughness = ∫p², which is not left to
    quadrature because |φ|² may decay slowly. Laplace: φ = 1/(1 + t²), ∫p² = 1/4; uniform: φ = sinc, ∫p² = 1/width.

    Raises ValueError if roughness is not positive; the overlap, if s is negative; it warns (ConvergenceWarning) if the
    quadrature does not reach 1e-12.
    Source: Chertkov §5.2.2, by Parseval's identity.  Taught in: notebook 05_02b.
    """
    roughness = as_number("roughness", roughness, low=0, strict=True)

    def overlap(s):
        s = as_array("s", s, ndim=range(9))
        if (s < 0).any():
            raise ValueError(f"s must be at least 0, got {s.min():g}")
        Q = np.full(s.shape, roughness)
        if (s > 0).any():
            Q[s > 0] = _damped_integral(lambda t: abs(cf(t)) ** 2, s[s > 0]) / math.pi
        return Q

    return overlap


def kde_moments(
    grid: Float[np.ndarray, " m"], bandwidth: float, n: int, cf: Callable[[Any], Any]
) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """Exact mean and variance of p̂ at points, for n samples of a law with the characteristic function cf.

    E p̂ = K_h * p, and Var p̂ = [(K_{h/√2} * p)/(2√π h) - (K_h * p)²]/n, where
    (K_s * p)(x) = (1/π) ∫₀^∞ Re[φ(t) exp(-itx)] exp(-s²t²/2) dt by adaptive quadrature.

    Raises ValueError if an argument is malformed; warns (ConvergenceWarning) if quadrature does not reach 1e-12.
    Source: Chertkov §5.2.2, eqs. (5.2) and (5.3).  Taught in: notebook 05_02b.
    """
    grid, n = as_array("grid", grid, ndim=1), as_integer("n", n, low=1)
    h = as_number("bandwidth", bandwidth, low=0, strict=True)

    def smoothed(s):
        return _damped_integral(lambda t: np.real(cf(t) * np.exp(-1j * t * grid)), np.array(s)) / math.pi

    mean = smoothed(h)
    return mean, (smoothed(h / math.sqrt(2)) / (2 * math.sqrt(math.pi) * h) - mean**2) / n


def _damped_integral(f: Callable[[float], Any], s: np.ndarray) -> np.ndarray:
    """∫₀^∞ f(t) exp(-s²t²/2) dt, for several s or an f of several values."""
    end = 9 / float(s.min())  # exp(-9²/2) = 3e-18
    integral, error, *_ = scipy.integrate.quad_vec(
        lambda t: f(t) * np.exp(-0.5 * (s * t) ** 2),
        0,
        end,
        epsabs=1e-14,
        epsrel=1e-12,
        norm="max",
        limit=5_000,
        points=end * 0.5 ** np.arange(1, 40),  # so that f is not overlooked, whatever its scale
    )
    if not error <= 1e-12 * max(1.0, float(np.abs(integral).max())):
        warnings.warn(f"quadrature over cf stopped with an error of {error:.1e}", ConvergenceWarning, stacklevel=3)
    return integral
