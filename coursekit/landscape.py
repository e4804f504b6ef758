"""The geometry of what a network has learned: activations and their spectra."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from coursekit._validation import as_integer
from coursekit.training import evaluation


def activations(
    model: nn.Module, X: Tensor, layers: Iterable[str], batch_size: int = 500
) -> dict[str, Float[Tensor, "n features"]]:
    """Outputs of the named layers for the samples X, flattened, in evaluation mode and without gradients.

    Parameters
    ----------
    layers : names as in ``model.named_modules()``, such as "relu1"
    batch_size : int ≥ 1

    Raises ValueError if the model has no such layer, or does not use it.
    Source: Chertkov §4.3.2.  Taught in: notebook 04_02.
    """
    batch_size = as_integer("batch_size", batch_size, low=1)
    modules = dict(model.named_modules())
    parts: dict[str, list[Tensor]] = {layer: [] for layer in layers}
    if unknown := [layer for layer in parts if layer not in modules]:
        raise ValueError(f"layers must be among {', '.join(filter(None, modules))}; got {', '.join(unknown)}")
    hooks = [
        # a copy: the next layer may work in place
        modules[layer].register_forward_hook(lambda _, __, out, seen=seen: seen.append(out.flatten(1).clone()))
        for layer, seen in parts.items()
    ]
    try:
        with evaluation(model):
            for part in X.split(batch_size):
                model(part)
    finally:
        for hook in hooks:
            hook.remove()
    if unused := [layer for layer, seen in parts.items() if not seen]:
        raise ValueError(f"the model does not use {', '.join(unused)}")
    n_parts = len(X.split(batch_size))
    if repeated := [layer for layer, seen in parts.items() if len(seen) != n_parts]:
        raise ValueError(f"the model uses {', '.join(repeated)} more than once a sample")
    return {layer: torch.cat(seen) for layer, seen in parts.items()}


@dataclass(frozen=True, eq=False)
class ActivationPCA:
    """Principal components of n activations (n, d), r = min(n, d) of them."""

    eigenvalues: Float[Tensor, " r"]
    """Of the covariance (divisor n), decreasing."""
    scores: Float[Tensor, "n r"]
    """Coordinates of the centred activations along the components."""

    @property
    def explained(self) -> Float[Tensor, " r"]:
        """Cumulative fraction of the variance."""
        return self.eigenvalues.cumsum(0) / self.eigenvalues.sum()

    @property
    def participation_ratio(self) -> float:
        """(Σλ)²/Σλ², between 1 and r: in how many directions the variance lies."""
        return float(self.eigenvalues.sum() ** 2 / (self.eigenvalues**2).sum())


def activation_pca(H: Float[Tensor, "n d"]) -> ActivationPCA:
    """PCA of activations by the smaller of the covariance and the Gram matrix: O(nd min(n, d)), whichever is long.

    Directions with less than about 1e-8 of the variance in double precision (1e-4 in single) are lost in rounding.

    Raises ValueError if H is not finite, or all rows are equal.
    Source: Chertkov §4.3.2.  Taught in: notebook 04_02.
    """
    if H.ndim != 2 or not torch.isfinite(H).all():
        raise ValueError(f"H must be a finite matrix (n, d), got shape {tuple(H.shape)}")
    n, d = H.shape
    centred = H - H.mean(dim=0)
    if torch.equal(H, H[:1].expand_as(H)):  # rounding leaves a centred constant other than 0
        raise ValueError("H must not be constant: its variance is 0")
    if d > n:
        values, vectors = torch.linalg.eigh(centred @ centred.T)
        values = values.flip(0).clamp(min=0)
        scores = vectors.flip(1) * values.sqrt()
    else:
        values, vectors = torch.linalg.eigh(centred.T @ centred)
        values = values.flip(0).clamp(min=0)
        scores = centred @ vectors.flip(1)
    return ActivationPCA(values / n, scores)


def between_class_fraction(H: Float[Tensor, "n d"], y: Int[Tensor, " n"]) -> float:
    """Part of the variance of H that lies between the class means, in [0, 1]: tr B/(tr B + tr W).

    Raises ValueError if y has another length or H is constant.
    Source: Chertkov §4.3.2.  Taught in: notebook 04_02.
    """
    if y.shape != H.shape[:1]:
        raise ValueError(f"y must have shape ({len(H)},), got {tuple(y.shape)}")
    if torch.equal(H, H[:1].expand_as(H)):  # rounding leaves a centred constant other than 0
        raise ValueError("H must not be constant: its variance is 0")
    mean = H.mean(dim=0)
    total = ((H - mean) ** 2).sum()
    between = sum((y == label).sum() * ((H[y == label].mean(dim=0) - mean) ** 2).sum() for label in y.unique())
    return float(between / total)
