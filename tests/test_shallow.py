import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from coursekit.shallow import ReluClassifier, decision_boundary

seeds = st.integers(0, 2**32 - 1)


def gaussian(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def classifier(seed, n=12, d=2, width=3):
    return ReluClassifier(
        gaussian(seed, n, d), np.random.default_rng(seed + 1).integers(2, size=n).astype(float), width
    )


def network(W, b, a, c):
    """θ of the network of weights W (H, d), b (H,), a (H,), c."""
    return np.concatenate([np.column_stack([W, b]).ravel(), a, [c]]).astype(float)


def output(theta, x):
    """f at the points x (..., d), unit by unit."""
    d = np.shape(x)[-1]
    H = (len(theta) - 1) // (d + 2)
    units = theta[: H * (d + 1)].reshape(H, d + 1)
    a = theta[H * (d + 1) : -1]
    return sum(a[h] * np.maximum(x @ units[h, :d] + units[h, d], 0) for h in range(H)) + theta[-1]


def scale(theta, x):
    """Size of the terms that f is the sum of."""
    return output(np.abs(theta), np.abs(x))


class TestReluClassifier:
    @given(seeds, st.integers(1, 9), st.integers(1, 5), st.integers(1, 4), st.sampled_from([(), (1,), (3,), (2, 4)]))
    @settings(max_examples=60)
    def test_agrees_with_torch(self, seed, n, width, d, runs):
        net = classifier(seed, n, d, width)
        theta = 2 * gaussian(seed + 2, *runs, net.n_parameters)
        gradient, loss, logits = net.gradient(theta), net.loss(theta), net.logits(theta)
        assert gradient.shape == theta.shape and np.shape(loss) == runs and logits.shape == (*runs, n)
        for run in np.ndindex(runs):
            point = torch.tensor(theta[run], requires_grad=True)
            units = point[: width * (d + 1)].reshape(width, d + 1)
            hidden = torch.relu(torch.from_numpy(net.X) @ units[:, :d].T + units[:, d])
            f = hidden @ point[width * (d + 1) : -1] + point[-1]
            theirs = torch.nn.functional.binary_cross_entropy_with_logits(f, torch.from_numpy(net.y))
            theirs.backward()
            np.testing.assert_allclose(logits[run], f.detach(), atol=1e-12)
            np.testing.assert_allclose(loss[run], theirs.detach(), atol=1e-12)
            np.testing.assert_allclose(gradient[run], point.grad, atol=1e-12)

    def test_zero_parameters(self):
        net = classifier(0)
        zero = np.zeros((2, net.n_parameters))
        np.testing.assert_allclose(net.loss(zero), np.log(2), rtol=1e-15)
        # only c moves: ∂loss/∂c = mean(½ - y)
        np.testing.assert_array_equal(net.gradient(zero)[:, :-1], 0)
        np.testing.assert_allclose(net.gradient(zero)[:, -1], 0.5 - net.y.mean(), atol=1e-16)

    @pytest.mark.usefixtures("unchecked")
    def test_integer_parameters(self):
        net = classifier(0)
        np.testing.assert_array_equal(net.gradient(np.ones(13, dtype=int)), net.gradient(np.ones(13)))

    def test_derivative_at_a_kink_is_zero(self):
        net = ReluClassifier(np.array([[1.0], [2.0]]), np.array([1.0, 1.0]), 1)
        # relu(x - 1): zero at the first point, 1 at the second; dloss/df = -½ σ(-f)
        pull = -0.5 / (1 + np.e)
        np.testing.assert_allclose(net.gradient(network([[1]], [-1], [1], 0)), [2 * pull, pull, pull, pull - 0.25])

    def test_saturated(self):
        net = ReluClassifier(np.array([[1.0], [1.0]]), np.array([0.0, 1.0]), 1)
        with np.errstate(over="raise", invalid="raise", divide="raise"):
            assert net.loss(np.array([1e3, 0, 1, 0.0])) == 500  # (1000 + e^-1000)/2
            np.testing.assert_allclose(net.gradient(np.array([1e3, 0, 1, 0.0])), [0.5, 0.5, 500, 0.5])

    def test_logits_by_hand(self):
        # 2 relu(x - 1) - 3 relu(-y + 2) + ½ at other points than the data
        theta = network([[1, 0], [0, -1]], [-1, 2], [2, -3], 0.5)
        net = classifier(0, width=2)
        np.testing.assert_array_equal(
            net.logits(theta, np.array([[0.0, 5.0], [3.0, 5.0], [3.0, 1.0], [0.0, 0.0]])), [0.5, 4.5, 1.5, -5.5]
        )
        np.testing.assert_array_equal(net.logits(theta, net.X), net.logits(theta))

    def test_batch_is_the_loop(self):
        net = classifier(1, 40, 2, 6)
        theta = net.init(12, rng=0).reshape(3, 4, -1)
        kept = theta.copy()
        for function in (net.loss, net.gradient, net.logits, net.dead_units):
            alone = [[function(theta[i, j]) for j in range(4)] for i in range(3)]
            np.testing.assert_allclose(function(theta), alone, rtol=1e-12, atol=1e-14)
        np.testing.assert_array_equal(theta, kept)

    def test_dead_units(self):
        net = ReluClassifier(np.array([[0.0, 0.0], [1.0, 2.0], [2.0, 1.0]]), np.array([0.0, 1.0, 1.0]), 4)
        # alive; below zero at the data; zero at its best point; alive at one point only
        theta = network([[1, 0], [1, 1], [-1, -1], [1, 0]], [0, -9, 0, -1.5], [1, 1, 1, 1], 0)
        np.testing.assert_array_equal(net.dead_units(np.stack([theta, -theta])), [2, 1])
        gradient = net.gradient(theta)
        np.testing.assert_array_equal(gradient[3:9], 0)
        np.testing.assert_array_equal(gradient[[13, 14]], 0)
        assert gradient[0:2].all() and gradient[9:13].all() and gradient[15]

    def test_init(self):
        net = classifier(0, d=3, width=4)
        theta = net.init(5000, 0.3, rng=0)
        assert theta.shape == (5000, 21) and net.n_parameters == 4 * 5 + 1
        biases = [3, 7, 11, 15, 20]
        np.testing.assert_array_equal(theta[:, biases], 0)
        weights = np.delete(theta, biases, axis=1) / 0.3
        assert (np.abs(weights.mean(axis=0)) < 5 / np.sqrt(5000)).all()
        assert (np.abs(np.mean(weights**2, axis=0) - 1) < 5 * np.sqrt(2 / 5000)).all()
        np.testing.assert_array_equal(net.init(2, rng=3), net.init(2, 0.5, rng=3))
        np.testing.assert_allclose(net.init(2, 1.0, rng=3), 2 * net.init(2, rng=3))

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: ReluClassifier(np.ones((3, 2)), np.ones(2), 2), r"y must have shape \(3\), got \(2,\)"),
            (lambda: ReluClassifier(np.ones(3), np.ones(3), 2), "X must have 2 dimension"),
            (lambda: ReluClassifier(np.ones((2, 2)), np.array([0, 2]), 2), r"labels 0 and 1, got \[0. 2.\]"),
            (lambda: ReluClassifier(np.ones((2, 2)), np.array([-1, 1]), 2), "labels 0 and 1"),
            (lambda: ReluClassifier(np.full((2, 2), np.nan), np.ones(2), 2), "X must be finite"),
            (lambda: classifier(0, width=0), "width must be at least 1, got 0"),
            (lambda: classifier(0).init(0), "n_runs must be at least 1, got 0"),
            (lambda: classifier(0).init(1, 0.0), "scale must be greater than 0, got 0"),
            (lambda: classifier(0).loss(np.zeros(12)), r"13 parameters a network, got shape \(12,\)"),
            (lambda: classifier(0).gradient(np.zeros((13, 2))), r"13 parameters a network, got shape \(13, 2\)"),
            (
                lambda: classifier(0).logits(np.zeros(13), np.ones((4, 3))),
                r"X must have shape \(any, 2\), got \(4, 3\)",
            ),
        ],
    )
    def test_bad_input(self, call, message):
        with pytest.raises(ValueError, match=message):
            call()


def hexagon(bias=0.0):
    """1 - Σ relu(u_h·x - bias), u_h three unit vectors 120° apart."""
    angle = 2 * np.pi * np.arange(3) / 3
    return network(np.column_stack([np.cos(angle), np.sin(angle)]), [-bias] * 3, [-1, -1, -1], 1)


def random_network(seed, H, kind="mixed"):
    """Also with many closed boundaries: concave ones, and such in which one sign prevails."""
    rng = np.random.default_rng(seed)
    a = rng.standard_normal(H)
    if kind == "concave":
        a = -np.abs(a)
    return network(
        rng.standard_normal((H, 2)), rng.standard_normal(H), a, 2 * rng.random() * (kind == "concave") + a[0]
    )


def crossings(theta, point, direction):
    """Zeros of f along point + s·direction, from its values where the units switch; f is linear between and beyond."""
    H = len(theta) // 4
    units, a = theta[: 3 * H].reshape(H, 3), theta[3 * H : -1]
    slopes = units[:, :2] @ direction
    s = np.sort(-(units[:, :2] @ point + units[:, 2]) / slopes)
    f = output(theta, point + s[:, None] * direction)
    zeros = [s[i] - f[i] * (s[i + 1] - s[i]) / (f[i + 1] - f[i]) for i in range(H - 1) if f[i] * f[i + 1] < 0]
    for end, outwards in ((0, -1), (-1, 1)):  # beyond the last switch the units that grow outwards are active
        growth = np.sum(a * np.maximum(outwards * slopes, 0))
        if f[end] * growth < 0:
            zeros.append(s[end] - outwards * f[end] / growth)
    return np.sort(zeros)


def intersections(boundary, point, direction):
    """Where the line meets the segments and rays."""
    found = []
    pieces = [(*boundary.corners[pair], 1.0) for pair in boundary.segments]
    pieces += [(start, start + along, np.inf) for start, along in boundary.rays]
    for start, end, length in pieces:
        s, t = np.linalg.solve(np.column_stack([direction, start - end]), start - point)
        if 0 <= t <= length:
            found.append(s)
    return np.sort(found)


networks = st.tuples(seeds, st.integers(2, 12), st.sampled_from(["mixed", "concave"]))


class TestDecisionBoundary:
    @pytest.mark.parametrize("bias", [0.0, 0.5, -0.2])
    def test_hexagon(self, bias):
        # on the line u_1·x = β, x = βu_1 + s t_1: f = 1 - relu(s√3/2 - 3β/2) - relu(-s√3/2 - 3β/2), zero at
        # s = ±(2 + 3β)/√3 (β > -1/3)
        boundary = decision_boundary(hexagon(bias))
        angle = 2 * np.pi * np.arange(3) / 3
        u = np.column_stack([np.cos(angle), np.sin(angle)])
        t = (2 + 3 * bias) / np.sqrt(3) * np.column_stack([-u[:, 1], u[:, 0]])
        expected = np.concatenate([bias * u + t, bias * u - t])
        order = [np.lexsort(np.round(corners, 9).T) for corners in (boundary.corners, expected)]
        np.testing.assert_allclose(boundary.corners[order[0]], expected[order[1]], atol=1e-14)
        assert boundary.closed and boundary.segments.shape == (6, 2) and boundary.rays.shape == (0, 2, 2)
        if bias == 0:  # regular, of apothem 1, as f = 1 - x·(direction) in each of six sectors
            np.testing.assert_allclose(np.linalg.norm(boundary.corners, axis=1), 2 / np.sqrt(3), rtol=1e-14)
            np.testing.assert_allclose(
                np.linalg.norm(boundary.corners[boundary.segments].mean(axis=1), axis=1), 1, rtol=1e-14
            )

    def test_wedge(self):
        # relu(x) + relu(y) = 1: a segment from (1, 0) to (0, 1), continued along the negative axes' directions
        boundary = decision_boundary(network(np.eye(2), [0, 0], [1, 1], -1))
        assert not boundary.closed
        np.testing.assert_allclose(np.sort(boundary.corners, axis=0), [[0, 0], [1, 1]])
        np.testing.assert_allclose(boundary.corners.sum(axis=1), 1)
        assert len(boundary.segments) == 1 and len(boundary.rays) == 2
        for start, along in boundary.rays:
            np.testing.assert_allclose(along, start - 1, atol=1e-15)  # from (1, 0) down, from (0, 1) to the left

    @given(networks)
    def test_every_piece_is_a_zero_of_f(self, case):
        theta = random_network(*case)
        boundary = decision_boundary(theta)
        corners, H = boundary.corners, case[1]
        units = theta[: 3 * H].reshape(H, 3)
        on_lines = np.abs(corners @ units[:, :2].T + units[:, 2]) / (np.abs(corners) @ np.abs(units[:, :2].T) + 1)
        assert (on_lines.min(axis=1, initial=np.inf) < 1e-12).all()
        ends = corners[boundary.segments]
        t = np.array([0.0, 0.01, 0.37, 0.5, 0.99, 1.0])[:, None, None]
        distances = np.array([0.0, 0.1, 1.0, 30.0, 1e4])[:, None, None]
        x = [*((1 - t) * ends[:, 0] + t * ends[:, 1]), *(boundary.rays[:, 0] + distances * boundary.rays[:, 1])]
        for points in x:
            assert (np.abs(output(theta, points)) <= 1e-9 * (1 + scale(theta, points))).all()
        np.testing.assert_allclose(np.linalg.norm(boundary.rays[:, 1], axis=-1), 1, rtol=1e-14)
        # each corner joins two pieces
        ends = np.bincount(boundary.segments.ravel(), minlength=len(corners))
        for start, _ in boundary.rays:
            ends[np.flatnonzero((corners == start).all(axis=1))] += 1
        assert (ends == 2).all()
        assert len(boundary.segments) + len(boundary.rays) <= 1 + H + H * (H - 1) // 2
        assert boundary.closed == (len(boundary.rays) == 0 and len(corners) > 0)

    @given(networks, seeds)
    def test_lines_meet_it_where_f_changes_sign(self, case, seed):
        theta = random_network(*case)
        boundary = decision_boundary(theta)
        for point, direction in gaussian(seed, 10, 2, 2):
            zeros = crossings(theta, 2 * point, direction)
            ours = intersections(boundary, 2 * point, direction)
            assert len(ours) == len(zeros)
            np.testing.assert_allclose(ours, zeros, rtol=1e-6, atol=1e-6)

    def test_two_units_never_close(self):
        found = [decision_boundary(random_network(seed, 2)) for seed in range(400)]
        assert not any(boundary.closed for boundary in found)
        assert sum(len(boundary.corners) > 0 for boundary in found) > 100
        # three do now and then
        assert any(decision_boundary(random_network(seed, 3)).closed for seed in range(400))

    @given(seeds, st.integers(3, 16))
    def test_concave_networks(self, seed, H):
        # the region f > 0 is convex: a bending line that enters it has two corners, any other none
        theta = random_network(seed, H, "concave")
        theta[-1] = abs(theta[-1]) + 1
        directions = np.sort(np.arctan2(theta[1 : 3 * H : 3], theta[0 : 3 * H : 3]))
        assume(np.diff(np.append(directions, directions[0] + 2 * np.pi)).max() < 3.1)  # positively spanning
        boundary = decision_boundary(theta)
        on_line = np.abs(boundary.corners @ theta[: 3 * H].reshape(H, 3)[:, :2].T + theta[2 : 3 * H : 3])
        counts = np.bincount(on_line.argmin(axis=1), minlength=H) if len(on_line) else np.zeros(H)
        assert set(counts) <= {0, 2}
        if boundary.closed:
            assert len(boundary.segments) == len(boundary.corners) == counts.sum() <= 2 * H

    def test_a_unit_beyond_the_polygon_adds_no_edge(self):
        inner = hexagon()
        W = np.vstack([inner[:9].reshape(3, 3)[:, :2], [1, 0.1]])
        boundary = decision_boundary(network(W, [0, 0, 0, -100], [-1] * 4, 1))
        assert boundary.closed and len(boundary.segments) == 6

    def test_annulus(self):
        # -1 + relu(s) - 3 relu(s - 2), s = Σ relu(u_h·x) would need two layers; two hexagons of one kind and opposite
        # sign do: f = -1 + Σ relu(u_h·x) - 3 Σ relu(u_h·x - 2)
        u = hexagon()[:9].reshape(3, 3)[:, :2]
        u = u @ [[np.cos(0.1), np.sin(0.1)], [-np.sin(0.1), np.cos(0.1)]]
        v = u @ [[np.cos(0.2), np.sin(0.2)], [-np.sin(0.2), np.cos(0.2)]]
        boundary = decision_boundary(network(np.vstack([u, v]), [0] * 3 + [-2] * 3, [1] * 3 + [-3] * 3, -1))
        assert boundary.closed
        radii = np.linalg.norm(boundary.corners, axis=1)
        assert (radii < 1.2).sum() == 6 and (radii > 2).sum() >= 6
        x = boundary.corners[boundary.segments]
        assert (((radii[boundary.segments] < 1.2).sum(axis=1)) != 1).all() and len(x) == len(radii)  # two polygons

    def test_scales_with_the_plane(self):
        theta = random_network(3, 6)
        large = theta.copy()
        large[2:18:3] *= 1e6  # x → 1e6 x with f → 1e6 f
        large[-1] *= 1e6
        small, large = decision_boundary(theta), decision_boundary(large)
        np.testing.assert_allclose(large.corners, 1e6 * small.corners, rtol=1e-9)
        np.testing.assert_array_equal(large.segments, small.segments)

    def test_constant_sign(self):
        for theta in (network(np.eye(2), [0, 0], [1, 1], 1), network(np.eye(2), [3, 3], [-1, -1], -1)):
            boundary = decision_boundary(theta)
            assert boundary.corners.shape == (0, 2) and boundary.segments.shape == (0, 2)
            assert boundary.rays.shape == (0, 2, 2) and not boundary.closed

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(
        ("theta", "message"),
        [
            (np.ones(8), "4H \\+ 1 entries for a network of H ≥ 2 units in the plane, got 8"),
            (network([[1, 2]], [3], [1], -1), "H ≥ 2 units in the plane, got 5"),
            (network([[1, 3], [-2, -6]], [0, 1], [1, 1], -1), "lines of units 0 and 1 must not be parallel"),
            (network(np.eye(2), [0, 0], [1, 1], 0), "f must not vanish where the lines of units 0 and 1 meet"),
            (np.ones(1), "4H \\+ 1 entries .*, got 1"),
            (np.ones((2, 9)), "theta must have 1 dimension"),
            (np.full(9, np.nan), "theta must be finite"),
            (network([[1, 0], [0, 0]], [1, 1], [1, 1], 1), "w = 0 for unit 1"),
        ],
    )
    def test_bad_input(self, theta, message):
        with pytest.raises(ValueError, match=message):
            decision_boundary(theta)
