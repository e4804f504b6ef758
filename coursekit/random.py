"""Reproducible randomness for notebooks: named, independent streams that all follow from one seed.

Kernels do not need this module: they take ``rng`` (SPEC 7) and call `numpy.random.default_rng`, or a torch
``generator``.
"""

import zlib
from typing import TYPE_CHECKING

import numpy as np

from coursekit._validation import as_integer

if TYPE_CHECKING:
    import torch


def stream(seed: int, *labels: str | int) -> np.random.Generator:
    """Generator for one part of a notebook: independent of every other label, reproducible from `seed`.

    Adding or reordering cells does not shift the random numbers of the others, as it does when a notebook
    passes one generator along.

    Parameters
    ----------
    seed : int >= 0
        The notebook's ``seed`` parameter.
    *labels : str or int
        What the stream is for, e.g. ``stream(seed, "spiked", trial)``.

    Raises
    ------
    ValueError
        If `seed` is negative or not an integer.
    """
    seed = as_integer("seed", seed, low=0)
    # crc32 rather than hash(): Python salts the hash of strings anew in every process
    return np.random.default_rng([seed, *(zlib.crc32(str(label).encode()) for label in labels)])


def torch_stream(seed: int, *labels: str | int) -> "torch.Generator":
    """As `stream`, for torch: a generator on the CPU.

    Raises ValueError if `seed` is negative or not an integer.
    """
    import torch

    return torch.Generator().manual_seed(int(stream(seed, *labels).integers(2**63)))
