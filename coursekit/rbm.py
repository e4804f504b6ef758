"""Restricted Boltzmann machines: binary visible and hidden units, coupled across the two layers only.

E(v, h) = -bᵀv - cᵀh - vᵀWh with v_i, h_j ∈ {0, 1} and p(v, h) = e^{-E}/Z. Given one layer the units of the other are
independent, so a whole layer is drawn at once.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.special import expit, logsumexp

from coursekit._validation import as_array, as_integer

Seed = np.random.Generator | int | None
Visible = Float[np.ndarray, "*batch d"]
Hidden = Float[np.ndarray, "*batch m"]


@dataclass(frozen=True, eq=False)
class RBM:
    """A restricted Boltzmann machine with d visible and m hidden units; methods broadcast over leading axes.

    Raises ValueError for parameters whose shapes do not fit, are not finite or not real.
    Source: Smolensky (1986); Chertkov §7.5, example 7.5.1.  Taught in: notebook 07_06b.
    """

    W: Float[np.ndarray, "d m"]
    b: Float[np.ndarray, " d"]
    """Biases of the visible units."""
    c: Float[np.ndarray, " m"]
    """Biases of the hidden units."""

    def __post_init__(self):
        W = as_array("W", self.W, ndim=2)
        b, c = (as_array(k, getattr(self, k), ndim=1, shape=(n,)) for k, n in zip("bc", W.shape, strict=True))
        for name, value in (("W", W), ("b", b), ("c", c)):
            object.__setattr__(self, name, value)

    def energy(self, v: Visible, h: Hidden) -> Float[np.ndarray, "*batch"] | float:
        """E(v, h)."""
        v, h = self._units("v", v, 0), self._units("h", h, 1)
        return -(v * (self.b + h @ self.W.T)).sum(axis=-1) - h @ self.c

    def free_energy(self, v: Visible) -> Float[np.ndarray, "*batch"] | float:
        """F(v) = -bᵀv - Σ_j log(1 + e^{(c + Wᵀv)_j}), so that p(v) = e^{-F(v)}/Z."""
        v = self._units("v", v, 0)
        return -(v @ self.b) - np.logaddexp(0, v @ self.W + self.c).sum(axis=-1)

    def hidden_probability(self, v: Visible) -> Hidden:
        """P(h_j = 1 | v) = 1/(1 + e^{-(c + Wᵀv)_j})."""
        return expit(self._units("v", v, 0) @ self.W + self.c)

    def visible_probability(self, h: Hidden) -> Visible:
        """P(v_i = 1 | h) = 1/(1 + e^{-(b + Wh)_i})."""
        return expit(self._units("h", h, 1) @ self.W.T + self.b)

    def log_z(self) -> float:
        """log Z, by summing over the states of the smaller layer; the other layer is summed in closed form.

        Raises ValueError if both layers have more than 20 units.
        """
        W, b, c = (self.W, self.b, self.c) if len(self.b) <= len(self.c) else (self.W.T, self.c, self.b)
        if len(b) > 20:
            raise ValueError(f"log_z sums over a layer of at most 20 units, got layers of {self.W.shape}")
        states = np.arange(2 ** len(b))
        parts = []
        for chunk in np.array_split(states, -(-len(states) // 2**14)):  # bounds the memory
            s = (chunk[:, None] >> np.arange(len(b)) & 1).astype(float)
            parts.append(logsumexp(s @ b + np.logaddexp(0, s @ W + c).sum(axis=1)))
        return float(logsumexp(parts))

    def to_ising(self) -> tuple[Float[np.ndarray, "n n"], Float[np.ndarray, " n"], float]:
        """(J, h, constant) of the same law for n = d + m spins x = 2 (v, h) - 1: E(v, h) = E_Ising(x) - constant.

        J couples the layers by W/4.
        """
        d, m = self.W.shape
        J = np.zeros((d + m, d + m))
        J[:d, d:] = self.W / 4
        fields = np.concatenate([self.b / 2 + self.W.sum(axis=1) / 4, self.c / 2 + self.W.sum(axis=0) / 4])
        return J + J.T, fields, float(self.b.sum() / 2 + self.c.sum() / 2 + self.W.sum() / 4)

    def block_gibbs(
        self,
        v0: Float[np.ndarray, "n_chains d"],
        n_draws: int,
        *,
        n_warmup: int = 0,
        record_every: int = 1,
        rng: Seed = None,
    ) -> tuple[Float[np.ndarray, "n_chains n_draws d"], Float[np.ndarray, "n_chains n_draws m"]]:
        """Draws (v, h) of block Gibbs sampling: all visible units given the hidden ones, then all hidden ones.

        Parameters
        ----------
        v0 : (n_chains, d)
            Where the chains start; the first hidden layer is drawn given it.
        n_draws, n_warmup, record_every : ints
            Recorded pairs of each chain, steps before the first that counts, steps from one pair to the next.
        rng : numpy Generator, int or None

        Raises ValueError for units that are not 0 or 1, or sizes out of range.
        Source: Hinton, Neural Computation 14 (2002); Chertkov §7.5.  Taught in: notebook 07_06b.
        """
        rng = np.random.default_rng(rng)
        n_draws, record_every = as_integer("n_draws", n_draws, low=1), as_integer("record_every", record_every, low=1)
        n_warmup = as_integer("n_warmup", n_warmup, low=0)
        v = as_array("v0", v0, ndim=2, shape=(None, len(self.b)))
        if not ((v == 0) | (v == 1)).all():
            raise ValueError("v0 must hold units 0 or 1")

        def draw(layer, other, weights, bias):
            """A unit is 1 with probability 1/(1 + e^{-field}), where u (1 + e^{-field}) < 1 for a uniform u."""
            np.matmul(other, weights, out=layer)
            layer += bias
            np.negative(layer, out=layer)
            np.exp(layer, out=layer)
            layer += 1
            layer *= rng.random(layer.shape)
            np.less(layer, 1, out=layer)

        v, h = v.copy(), np.empty((len(v), len(self.c)))
        visible, hidden = (np.empty((len(v), n_draws, n)) for n in self.W.shape)
        with np.errstate(over="ignore", invalid="ignore"):  # an infinite e^{-field} sets the unit to 0
            draw(h, v, self.W, self.c)
            for step in range(-n_warmup, n_draws * record_every):
                draw(v, h, self.W.T, self.b)
                draw(h, v, self.W, self.c)
                if step >= 0 and (step + 1) % record_every == 0:
                    visible[:, step // record_every], hidden[:, step // record_every] = v, h
        return visible, hidden

    def _units(self, name, x, axis):
        x = as_array(name, x, ndim=range(1, 9))
        if x.shape[-1] != self.W.shape[axis]:
            raise ValueError(f"{name} must hold {self.W.shape[axis]} units along the last axis, got shape {x.shape}")
        return x
