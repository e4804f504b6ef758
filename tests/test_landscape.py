import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA

from coursekit import nn
from coursekit.landscape import activation_pca, activations, between_class_fraction

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")),
]


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def gaussian(seed, *shape, dtype=torch.float64):
    return torch.randn(*shape, generator=seeded(seed), dtype=dtype)


def rotation(seed, d):
    return torch.linalg.qr(gaussian(seed, d, d)).Q


class Shared(torch.nn.Module):
    """Uses `twice` two times and `never` not at all."""

    def __init__(self):
        super().__init__()
        self.twice, self.never = torch.nn.Tanh(), torch.nn.Tanh()

    def forward(self, x):
        return self.twice(2 * self.twice(x))


class TestActivations:
    @pytest.mark.parametrize("device", DEVICES)
    @pytest.mark.parametrize("batch_size", [1, 3, 7, 500])
    def test_forward_by_hand(self, device, batch_size):
        model = nn.MLP((2, 5, 4, 3), torch.nn.ReLU, generator=seeded(0)).double().to(device)
        X = gaussian(1, 7, 2).to(device)
        ours = activations(model, X, ["1", "2", "4"], batch_size)
        first = torch.relu(X @ model[0].weight.T + model[0].bias)
        second = first @ model[2].weight.T + model[2].bias
        third = torch.relu(second) @ model[4].weight.T + model[4].bias
        assert list(ours) == ["1", "2", "4"]
        for layer, expected in zip(ours.values(), (first, second, third), strict=True):
            torch.testing.assert_close(layer, expected.detach())
            assert layer.device.type == device and not layer.requires_grad

    def test_images_are_flattened_in_evaluation_mode(self):
        model = nn.CNN((2, 3), hidden=4, in_shape=(1, 8, 8), batch_norm=True, generator=seeded(0)).double()
        X = gaussian(1, 5, 1, 8, 8)
        model(3 * X)  # statistics other than those of X
        model.conv1.eval()
        before = [module.training for module in model.modules()]
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        ours = activations(model, X, ["norm1", "pool2", "fc2"], 2)
        assert list(ours) == ["norm1", "pool2", "fc2"]
        assert [tuple(H.shape) for H in ours.values()] == [(5, 2 * 8 * 8), (5, 3 * 2 * 2), (5, 10)]
        z = torch.nn.functional.conv2d(X, model.conv1.weight, padding=1)
        mean, variance = (s[:, None, None] for s in (model.norm1.running_mean, model.norm1.running_var))
        torch.testing.assert_close(ours["norm1"], ((z - mean) / (variance + 1e-5) ** 0.5).detach().reshape(5, -1))
        assert [module.training for module in model.modules()] == before
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())

    def test_what_works_in_place_does_not_change_them(self):
        model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(inplace=True)).double()
        X = gaussian(0, 9, 2)
        ours = activations(model, X, ["0", "1"])
        expected = (X @ model[0].weight.T + model[0].bias).detach()
        assert (expected < 0).any()
        torch.testing.assert_close(ours["0"], expected)
        torch.testing.assert_close(ours["1"], expected.clamp(min=0))

    def test_order_of_samples(self):
        X = torch.arange(1201.0)[:, None]
        assert torch.equal(activations(torch.nn.Sequential(torch.nn.Identity()), X, ["0"])["0"], X)

    def test_nested_layers(self):
        model = nn.ResidualMLP(2, 3, width=4, n_blocks=2, generator=seeded(0)).eval()
        X = gaussian(1, 6, 2, dtype=torch.float32)
        ours = activations(model, X, iter(["blocks.1", "blocks.1.g.0"]))
        torch.testing.assert_close(model.fc_out(ours["blocks.1"]), model(X))
        h = model.blocks[0](torch.relu(model.fc_in(X)))
        torch.testing.assert_close(ours["blocks.1.g.0"], model.blocks[1].g[0](h).detach())

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(
        ("layers", "batch_size", "message"),
        [
            (["never"], 4, "the model does not use never"),
            (["twice"], 4, "the model uses twice more than once"),
            (["twice", "fc9"], 4, "layers must be among twice, never; got fc9"),
            (["twice"], 0, "batch_size must be at least 1, got 0"),
        ],
    )
    def test_bad_input(self, layers, batch_size, message):
        model = Shared()
        with pytest.raises(ValueError, match=message):
            activations(model, torch.ones(10, 2), layers, batch_size)
        assert model.training and not model.twice._forward_hooks and not model.never._forward_hooks

    def test_hooks_are_removed(self):
        model = nn.MLP((2, 3, 1))
        activations(model, torch.ones(4, 2), ["0", "1"])
        assert not any(module._forward_hooks for module in model.modules())
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            activations(model, torch.ones(4, 3), ["0", "1"])
        assert not any(module._forward_hooks for module in model.modules())
        assert model.training and torch.is_grad_enabled()


class TestActivationPCA:
    @given(st.integers(2, 9), st.integers(1, 9), st.integers(0, 999))
    @settings(max_examples=60)
    def test_agrees_with_sklearn(self, n, d, seed):
        H = gaussian(seed, n, d) * torch.arange(1, d + 1) + 3
        ours, theirs = activation_pca(H), PCA(svd_solver="full").fit(H.numpy())
        r = min(n, d)
        assert ours.eigenvalues.shape == (r,) and ours.scores.shape == (n, r)
        # theirs has divisor n - 1
        scale = theirs.explained_variance_[0]
        np.testing.assert_allclose(ours.eigenvalues * n / (n - 1), theirs.explained_variance_, atol=1e-12 * scale)
        np.testing.assert_allclose(ours.explained, theirs.explained_variance_ratio_.cumsum(), rtol=1e-10)
        # up to the sign of each component; a centred matrix of n rows has n - 1 components, the last is rounding
        rank = min(n - 1, d)
        scores = theirs.transform(H.numpy())
        size = float(ours.scores.abs().max())
        np.testing.assert_allclose(ours.scores[:, :rank].abs(), np.abs(scores[:, :rank]), atol=1e-6 * size)

    @given(st.integers(2, 9), st.integers(1, 9), st.integers(0, 999))
    @settings(max_examples=40)
    def test_invariants(self, n, d, seed):
        H = gaussian(seed, n, d)
        pca = activation_pca(H)
        values, total = pca.eigenvalues, H.var(dim=0, correction=0).sum()
        assert (values.diff() <= 0).all() and (values >= 0).all()
        torch.testing.assert_close(values.sum(), total)
        # scores are centred and uncorrelated, with the eigenvalues as variances
        size = float(total.sqrt())
        torch.testing.assert_close(pca.scores.mean(dim=0), torch.zeros_like(values), rtol=0, atol=1e-7 * size)
        torch.testing.assert_close(pca.scores.T @ pca.scores / n, torch.diag(values), rtol=0, atol=1e-10 * size**2)
        # and keep distances
        torch.testing.assert_close(torch.cdist(pca.scores, pca.scores), torch.cdist(H, H), rtol=1e-6, atol=1e-6 * size)
        assert (pca.explained.diff() >= 0).all() and float(pca.explained[-1]) == pytest.approx(1)
        assert 1 - 1e-12 <= pca.participation_ratio <= len(values) * (1 + 1e-12)

    @given(st.integers(2, 9), st.integers(1, 9), st.integers(0, 999))
    @settings(max_examples=30)
    def test_rotation_and_shift(self, n, d, seed):
        H = gaussian(seed, n, d)
        moved = activation_pca(H @ rotation(seed + 1, d) - 5)
        torch.testing.assert_close(moved.eigenvalues, activation_pca(H).eigenvalues, rtol=1e-9, atol=1e-10)

    @pytest.mark.parametrize("extra", [0, 1, 20])
    def test_both_ways_agree(self, extra):
        # columns of zeros change nothing but the branch: 6 samples in 5, or in more than 6 dimensions
        H = gaussian(0, 6, 5)
        narrow, wide = activation_pca(H), activation_pca(torch.cat([H, torch.zeros(6, extra)], dim=1))
        torch.testing.assert_close(wide.eigenvalues[:5], narrow.eigenvalues)
        torch.testing.assert_close(wide.scores[:, :5].abs(), narrow.scores.abs())
        assert wide.participation_ratio == pytest.approx(narrow.participation_ratio)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("device", DEVICES)
    def test_by_hand(self, dtype, device):
        # (±3, 0) and (0, ±1): variances 9/2 and 1/2
        H = torch.tensor([[3, 0], [-3, 0], [0, 1], [0, -1]], dtype=dtype, device=device) + 7
        pca = activation_pca(H)
        assert pca.eigenvalues.dtype == dtype and pca.scores.device.type == device
        np.testing.assert_allclose(pca.eigenvalues.cpu(), [4.5, 0.5], rtol=1e-6)
        np.testing.assert_allclose(pca.explained.cpu(), [0.9, 1], rtol=1e-6)
        np.testing.assert_allclose(pca.scores.cpu().abs(), [[3, 0], [3, 0], [0, 1], [0, 1]], atol=1e-5)
        assert pca.participation_ratio == pytest.approx(25 / (81 / 4 + 1 / 4), rel=1e-6)  # 50/41

    @pytest.mark.parametrize("d", [1, 4, 7])
    def test_participation_ratio_of_isotropic_points(self, d):
        # ±e_1, …, ±e_d: covariance I/d
        assert activation_pca(torch.cat([torch.eye(d), -torch.eye(d)])).participation_ratio == pytest.approx(d)
        # d + 1 corners of a simplex: d directions in d + 1 dimensions; with one column more, by the Gram matrix
        for columns in (d + 1, d + 2):
            assert activation_pca(torch.eye(d + 1, columns).double()).participation_ratio == pytest.approx(d)

    @pytest.mark.parametrize("shape", [(6, 3), (3, 6)])
    def test_participation_ratio_of_rank_one(self, shape):
        n, d = shape
        H = torch.outer(gaussian(0, n), gaussian(1, d)) + gaussian(2, d)
        assert activation_pca(H).participation_ratio == pytest.approx(1, rel=1e-12)

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(
        ("H", "message"),
        [
            (torch.ones(3), r"H must be a finite matrix \(n, d\), got shape \(3,\)"),
            (torch.ones(2, 2, 2), r"finite matrix \(n, d\), got shape \(2, 2, 2\)"),
            (torch.tensor([[1.0, torch.nan]]), "H must be a finite matrix"),
            (torch.tensor([[1.0], [torch.inf]]), "H must be a finite matrix"),
            (torch.ones(4, 2), "H must not be constant"),
            (torch.ones(1, 2), "H must not be constant"),
            (torch.full((7, 2), 0.1), "H must not be constant"),  # whose mean is not 0.1 in single precision
        ],
    )
    def test_bad_input(self, H, message):
        with pytest.raises(ValueError, match=message):
            activation_pca(H)


class TestBetweenClassFraction:
    def test_by_hand(self):
        # classes {0, 2} and {6}: means 1 and 6, all 8/3. Between 2(5/3)² + (10/3)² = 50/3, within 1 + 1 = 2
        H, y = torch.tensor([[0.0], [6.0], [2.0]], dtype=torch.float64), torch.tensor([5, 3, 5])
        assert between_class_fraction(H, y) == pytest.approx((50 / 3) / (50 / 3 + 2), rel=1e-14)

    def test_extremes(self):
        H = gaussian(0, 6, 3)
        assert between_class_fraction(H, torch.arange(6)) == pytest.approx(1, rel=1e-14)  # nothing within
        assert between_class_fraction(H, torch.zeros(6).long()) == pytest.approx(0, abs=1e-30)  # one class
        # classes of equal means
        assert between_class_fraction(torch.cat([H, -H]), torch.arange(12) % 6) == pytest.approx(0, abs=1e-28)

    @given(st.integers(2, 12), st.integers(1, 5), st.integers(1, 4), st.integers(0, 999))
    @settings(max_examples=40)
    def test_total_is_between_and_within(self, n, d, n_classes, seed):
        H, y = gaussian(seed, n, d), torch.randint(n_classes, (n,), generator=seeded(seed))
        ours = between_class_fraction(H, y)
        # one less the part within, from numpy's variances (divisor n)
        points, labels = H.numpy(), y.numpy()
        within = sum(points[labels == c].var(axis=0).sum() * (labels == c).sum() for c in np.unique(labels))
        assert type(ours) is float
        assert ours == pytest.approx(1 - within / (n * points.var(axis=0).sum()), abs=1e-10)
        moved = between_class_fraction(3 * H @ rotation(seed + 1, d) - 5, 10 - 2 * y)
        assert moved == pytest.approx(ours, abs=1e-10)

    def test_expected_value_without_classes(self):
        # labels that know nothing: tr B ~ χ² with d(K - 1) degrees of freedom, tr W independent with d(n - K), so that
        # the fraction is Beta of half as many, of mean (K - 1)/(n - 1)
        n, d, K = 60, 5, 4
        draws = [between_class_fraction(gaussian(seed, n, d), torch.arange(n) % K) for seed in range(100)]
        law = scipy.stats.beta(d * (K - 1) / 2, d * (n - K) / 2)
        assert law.mean() == pytest.approx((K - 1) / (n - 1))
        assert abs(np.mean(draws) - law.mean()) < 5 * law.std() / 10

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(
        ("H", "y", "message"),
        [
            (torch.ones(3, 2), torch.tensor([0, 1]), r"y must have shape \(3,\), got \(2,\)"),
            (torch.ones(3, 2), torch.zeros(3, 1).long(), r"y must have shape \(3,\), got \(3, 1\)"),
            (torch.ones(3, 2), torch.tensor([0, 1, 0]), "H must not be constant"),
            (torch.full((3, 2), 0.1, dtype=torch.float64), torch.tensor([0, 1, 0]), "H must not be constant"),
        ],
    )
    def test_bad_input(self, H, y, message):
        with pytest.raises(ValueError, match=message):
            between_class_fraction(H, y)
