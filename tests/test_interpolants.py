import math
from functools import partial

import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coursekit import ConvergenceWarning, training
from coursekit.diffusion import GaussianMixture, VPSchedule, mixture_score, sample
from coursekit.interpolants import (
    GaussianBridge,
    LinearPath,
    TrigonometricPath,
    brownian_bridge,
    doob_transform,
    flow_matching_loss,
    gaussian_schrodinger_bridge,
    markov_projection,
    mixture_velocity,
    ot_pairs,
    schrodinger_bridge,
    score_to_velocity,
    velocity_to_score,
)
from coursekit.nn import TimeMLP
from coursekit.ode import odeint
from coursekit.transport import ot_exact

F64 = torch.float64
PATHS = {"linear": LinearPath(), "trigonometric": TrigonometricPath(), "VP": VPSchedule()}
every_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
seeds = st.integers(0, 2**31 - 1)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def normal(seed, *shape, dtype=F64):
    return torch.randn(*shape, generator=seeded(seed), dtype=dtype)


def close(actual, expected, rtol=1e-9, atol=1e-9):
    np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), rtol=rtol, atol=atol)


def spd(seed, d=2):
    A = normal(seed, d, d)
    return A @ A.mT + 0.3 * torch.eye(d, dtype=F64)


def mixture(seed=0, k=3, d=2):
    covs = torch.stack([spd(seed + i, d) for i in range(k)])
    return GaussianMixture(torch.softmax(normal(seed + 50, k), 0), 2 * normal(seed + 51, k, d), covs)


def line(means=(-2.0, 2.0), weights=(0.3, 0.7), std=0.5):
    covs = torch.full((len(means), 1, 1), std**2, dtype=F64)
    return GaussianMixture(torch.tensor(weights, dtype=F64), torch.tensor(means, dtype=F64).unsqueeze(1), covs)


# The bridge of the book's notebook: two modes to one, with ε = 0.36
TWO, ONE = line((-2.0, 2.0), (0.5, 0.5), 0.35), line((0.0,), (1.0,), 0.45)


def flow(velocity, x1, n_steps, method="heun", t_min=0.0):
    """From noise at t = 1 to data at t_min."""
    clock = torch.linspace(0, 1 - t_min, n_steps + 1, dtype=F64).tolist()
    return odeint(lambda s, x: -velocity(x, 1 - s), x1, clock, method=method)[-1]


# --- interpolants ---------------------------------------------------------------------------------------


def test_paths_join_data_and_noise():
    for path in (LinearPath(), TrigonometricPath()):
        close([path.alpha(0.0), path.sigma(0.0), path.alpha(1.0), path.sigma(1.0)], [1, 0, 0, 1])
    t = torch.tensor([0.2, 0.7], dtype=F64)
    close(LinearPath().alpha(t), 1 - t)
    close(TrigonometricPath().alpha(t) ** 2 + TrigonometricPath().sigma(t) ** 2, torch.ones(2))


@every_path
@given(seed=seeds, t=st.floats(0.02, 0.98))
@settings(max_examples=15)
def test_the_velocity_solves_the_continuity_equation(path, seed, t):
    """∂_t log p + v·∇ log p + div v = 0."""
    law, x, step = mixture(seed), normal(seed + 1, 4, 2), 1e-5
    velocity = mixture_velocity(law, path)
    log_p = lambda s: law.noised(path.alpha(s), path.sigma(s)).log_prob(x)  # noqa: E731
    change = (log_p(t + step) - log_p(t - step)) / (2 * step)
    score = law.noised(path.alpha(t), path.sigma(t)).score(x)
    jacobian = torch.autograd.functional.jacobian(lambda y: velocity(y, t).sum(0), x)  # (2, 4, 2)
    divergence = jacobian[0, :, 0] + jacobian[1, :, 1]
    residual = change + (velocity(x, t) * score).sum(1) + divergence
    assert float(residual.abs().max()) < 1e-5 * (1 + float(change.abs().max()) + float(divergence.abs().max()))


def test_the_velocity_of_the_vp_path_is_the_probability_flow():
    law, path, x, t = mixture(), VPSchedule(), normal(3, 6, 2), 0.4
    score = mixture_score(law, path)(x, t)
    close(mixture_velocity(law, path)(x, t), path.rate(t) * x - 0.5 * path.beta(t) * score)


@every_path
def test_velocities_and_scores_convert_into_each_other(path):
    law, x = mixture(), normal(4, 6, 2)
    for t in (0.1, 0.5, 0.9):
        score, velocity = mixture_score(law, path)(x, t), mixture_velocity(law, path)(x, t)
        close(velocity_to_score(velocity, x, t, path), score)
        close(score_to_velocity(score, x, t, path), velocity)
    times = torch.linspace(0.1, 0.9, 6, dtype=F64)
    rows = torch.cat([velocity_to_score(x[i : i + 1], x[i : i + 1], float(s), path) for i, s in enumerate(times)])
    close(velocity_to_score(x, x, times, path), rows)


@every_path
def test_the_flow_of_gaussian_data_is_the_monge_map(path):
    """Between the marginals at two times, whose covariances commute, by the roots of their eigenvalues."""
    cov, mean = spd(7), torch.tensor([[1.0, -2.0]], dtype=F64)
    law = GaussianMixture(torch.ones(1, dtype=F64), mean, cov.unsqueeze(0))
    # From t = 1 to t = 0.01: the noise of VP is not quite N(0, I) at the one, its σ̇ infinite at the other end
    first, last = (law.noised(path.alpha(t), path.sigma(t)) for t in (0.01, 1.0))
    x1 = normal(1, 5, 2)
    x0 = flow(mixture_velocity(law, path), x1, 200, "rk4", t_min=0.01)
    Q = torch.linalg.eigh(cov)[1]
    stretch = (torch.linalg.eigvalsh(first.covs[0]) / torch.linalg.eigvalsh(last.covs[0])).sqrt()
    close(x0, first.means + (x1 - last.means) @ (Q * stretch) @ Q.mT, atol=1e-5, rtol=1e-5)


def test_one_euler_step_along_straight_lines_gives_the_mean():
    law = line()
    x1 = normal(2, 50, 1)
    x0 = x1 - mixture_velocity(law, LinearPath())(x1, 1.0)  # v(x, 1) = x - E x_0
    close(x0, torch.full((50, 1), 0.8, dtype=F64))


def test_kinetic_actions_of_two_paths():
    """∫ E v² dt by quadrature: 2.7460 linear, 2.5437 trigonometric, above W_2² = 1.8428 (inventory Y.50)."""
    law, grid = line(), torch.linspace(-12, 12, 4801, dtype=F64).unsqueeze(1)

    def action(path):
        def energy(t):
            density = law.noised(path.alpha(t), path.sigma(t)).log_prob(grid).exp()
            return float((density * mixture_velocity(law, path)(grid, t)[:, 0] ** 2).sum() * 0.005)

        return scipy.integrate.quad(energy, 0, 1, epsabs=1e-6)[0]

    assert action(LinearPath()) == pytest.approx(2.7460, abs=1e-4)
    assert action(TrigonometricPath()) == pytest.approx(2.5437, abs=1e-4)


def test_the_loss_of_the_exact_velocity_is_its_floor_and_that_of_zero_the_mean_square():
    law, path, n = line(), LinearPath(), 200
    exact = mixture_velocity(law, path)

    def model(x, t):
        return torch.cat([exact(row.unsqueeze(0), float(s)) for row, s in zip(x, t, strict=True)])

    def losses(model, n):
        draws = [
            float(
                flow_matching_loss(model, law.sample(n, generator=seeded(i)), normal(99 + i, n, 1), path, generator=g)
            )
            for i, g in enumerate(map(seeded, range(12)))
        ]
        return np.mean(draws), np.std(draws, ddof=1) / math.sqrt(12)

    mean, se = losses(model, n)
    assert mean == pytest.approx(5.25 - 2.7460, abs=5 * se + 1e-4)  # E(x_1 - x_0)² - ∫ E v² dt
    mean, se = losses(lambda x, t: torch.zeros_like(x), 50_000)
    assert mean == pytest.approx(1 + 3.61 + 0.64, abs=5 * se)  # independent ends: 1 + E x_0²


def test_flow_matching_learns_to_generate():
    law, generator = line(), seeded(0)
    x0, x1 = law.sample(100_000, generator=generator).float(), torch.randn(100_000, 1, generator=generator)
    model = TimeMLP(1, (64, 64), generator=generator)
    loss = partial(flow_matching_loss, path=LinearPath(), generator=generator)
    options = {"schedule": training.cosine, "ema_decay": 0.99, "generator": generator}
    adam = torch.optim.Adam(model.parameters(), 1e-2)
    learned = training.fit(model, loss, (x0, x1), adam, epochs=2, batch_size=256, **options).ema
    with torch.no_grad():
        x = flow(learned, normal(5, 20_000, 1).float(), 30)
    assert float((x < 0).float().mean()) == pytest.approx(0.3, abs=0.03)
    assert float(x[x > 0].std()) == pytest.approx(0.5, rel=0.15)


def test_a_velocity_gives_the_whole_family_of_reverse_processes():
    law, path, n = line(), LinearPath(T=0.999), 20_000
    velocity = mixture_velocity(law, path)
    score = lambda x, t: velocity_to_score(velocity(x, t), x, t, path)  # noqa: E731
    for noise in (0.0, 1.0):
        x = sample(score, path, n, 1, 100, noise=noise, method="heun", generator=seeded(1), dtype=F64)
        assert float((x < 0).double().mean()) == pytest.approx(0.3, abs=5 * math.sqrt(0.21 / n) + 0.003)
        assert float(x.var()) == pytest.approx(3.61, rel=0.05)


@given(seed=seeds, n=st.integers(1, 7), d=st.integers(1, 3))
@settings(max_examples=20)
def test_pairs_are_the_best_assignment(seed, n, d):
    x0, x1 = normal(seed, n, d), normal(seed + 1, n, d)
    order = ot_pairs(x0, x1, n)
    assert sorted(order.tolist()) == list(range(n))
    cost = float((x0 - x1[order]).square().sum()) / n
    uniform = np.full(n, 1 / n)
    assert cost == pytest.approx(ot_exact(uniform, uniform, torch.cdist(x0, x1).square().numpy()).cost, rel=1e-9)


def test_pairs_stay_within_their_batch():
    x0, x1 = normal(0, 10, 2), normal(1, 10, 2)
    order = ot_pairs(x0, x1, 4)
    for low, high in ((0, 4), (4, 8), (8, 10)):
        assert sorted(order[low:high].tolist()) == list(range(low, high))


# --- bridges --------------------------------------------------------------------------------------------


def test_a_bridge_has_its_covariance_whatever_the_steps():
    """Cov(x_s, x_t) = ε s(1 - t) for s ≤ t, mean on the straight line."""
    n, variance = 100_000, 0.36
    t = torch.tensor([0.0, 0.25, 0.3, 0.8, 1.0], dtype=F64)
    x0, x1 = torch.full((n, 1), -1.0, dtype=F64), torch.full((n, 1), 2.0, dtype=F64)
    path = brownian_bridge(x0, x1, t, variance, generator=seeded(0))
    close(path[0], x0)
    close(path[-1], x1)
    inner = path[1:4, :, 0] - (-1 + 3 * t[1:4, None])
    s, u = t[1:4, None], t[None, 1:4]
    expected = variance * torch.minimum(s, u) * (1 - torch.maximum(s, u))
    found = inner @ inner.mT / n
    spread = (expected.diagonal()[:, None] * expected.diagonal() + expected**2).sqrt() / math.sqrt(n)
    assert bool(((found - expected).abs() < 5 * spread).all())


def test_a_bridge_without_variance_is_straight():
    x0, x1, t = normal(0, 4, 3), normal(1, 4, 3), torch.tensor([0.1, 0.6, 1.0], dtype=F64)
    close(brownian_bridge(x0, x1, t, 0.0), x0 + t.view(-1, 1, 1) * (x1 - x0))


def test_conditioning_on_a_point_gives_the_drift_of_a_bridge():
    x, end, variance, t = normal(0, 6, 2), torch.tensor([0.3, -0.9], dtype=F64), 0.36, 0.7
    log_h = lambda x, t: -((end - x) ** 2).sum(-1) / (2 * variance * (1 - t))  # noqa: E731
    close(doob_transform(log_h, variance)(x, t), (end - x) / (1 - t))
    close(doob_transform(log_h, variance, lambda x, t: -x)(x, t), (end - x) / (1 - t) - x)
    assert not x.requires_grad


def test_marginals_of_independent_ends():
    """Variance 4.1225 (1-t)² + 0.2025 t² + 0.36 t(1-t) (inventory B9.8): 2.399, 1.171, 0.439, 0.2102."""
    n = 100_000
    t = torch.tensor([0.25, 0.5, 0.75, 0.95, 1.0], dtype=F64)
    path = brownian_bridge(TWO.sample(n, generator=seeded(0)), ONE.sample(n, generator=seeded(1)), t, 0.36)
    exact = 4.1225 * (1 - t) ** 2 + 0.2025 * t**2 + 0.36 * t * (1 - t)
    close(exact, [2.399, 1.171, 0.439, 0.2102, 0.2025], atol=6e-4)
    centered = path[..., 0] - path[..., 0].mean(1, keepdim=True)
    se = (centered**2).std(1) / math.sqrt(n)
    assert bool(((centered**2).mean(1) - exact).abs().lt(5 * se).all())


def euler(drift, x, variance, n_steps, generator, end=1.0):
    h = end / n_steps
    for k in range(n_steps):
        x = x + h * drift(x, k * h) + math.sqrt(variance * h) * torch.randn(x.shape, generator=generator, dtype=F64)
    return x


def test_the_markov_projection_keeps_the_marginals_but_not_the_coupling():
    n = 50_000
    start = TWO.sample(n, generator=seeded(0))
    end = euler(markov_projection(TWO, ONE, 0.36), start, 0.36, 190, seeded(1), end=0.95)
    square = (end - end.mean()) ** 2
    # 0.2102 is the variance of the mixture of bridges at 0.95; Euler errs by O(h)
    assert float(square.mean()) == pytest.approx(0.2102, abs=5 * float(square.std()) / math.sqrt(n) + 0.005)
    assert float(torch.corrcoef(torch.cat([start, end], 1).mT)[0, 1]) > 0.5  # independent ends have less: 0.22


@given(seed=seeds)
@settings(max_examples=15)
def test_the_markov_projection_is_the_conditional_mean_of_the_bridge(seed):
    """By quadrature over both ends, in one dimension."""
    g = seeded(seed)
    a, b = (line(tuple(torch.randn(2, generator=g, dtype=F64).tolist()), (0.4, 0.6), 0.5) for _ in range(2))
    x, t, variance = 0.3, 0.6, 0.5
    nodes = torch.linspace(-6, 6, 601, dtype=F64)
    p0, p1 = (law.log_prob(nodes.unsqueeze(1)).exp() for law in (a, b))
    middle = (1 - t) * nodes[:, None] + t * nodes[None, :]
    weight = p0[:, None] * p1[None, :] * torch.exp(-((x - middle) ** 2) / (2 * variance * t * (1 - t)))
    expected = ((weight * nodes[None, :]).sum() / weight.sum() - x) / (1 - t)
    close(markov_projection(a, b, variance)(torch.tensor([[x]], dtype=F64), t), [[expected]], rtol=1e-6)


def test_without_noise_the_projection_is_the_velocity_of_flow_matching():
    law, noise = (
        mixture(),
        GaussianMixture(torch.ones(1, dtype=F64), torch.zeros(1, 2, dtype=F64), torch.eye(2, dtype=F64).unsqueeze(0)),
    )
    x = normal(1, 5, 2)
    close(markov_projection(law, noise, 0.0)(x, 0.4), mixture_velocity(law, LinearPath())(x, 0.4))


def test_the_gaussian_bridge_on_the_line():
    """Cov(x_0, x_1) = ½(√(4 s_0² s_1² + ε²) - ε): 0.69372 for s_0 = 1.3, s_1 = 0.7, ε = 0.5 (inventory B9.9)."""
    one = torch.ones(1, dtype=F64)
    bridge = gaussian_schrodinger_bridge(0 * one, 1.69 * one[:, None], one, 0.49 * one[:, None], 0.5)
    close(bridge.cross, [[0.5 * (math.sqrt(4 * 1.69 * 0.49 + 0.25) - 0.5)]])
    assert float(bridge.cross) == pytest.approx(0.69372, abs=1e-5)
    mean, cov = bridge.marginal(1.0)
    close(mean, one)
    close(cov, 0.49 * one[:, None])


@given(seed=seeds, d=st.integers(1, 3), log_variance=st.floats(-4, 8))
@settings(max_examples=25)
def test_the_gaussian_bridge_is_an_entropic_coupling(seed, d, log_variance):
    """The joint precision has the off-diagonal block -I/ε: the density is p(x_0) φ(x_1) N(x_1; x_0, ε I)."""
    variance = math.exp(log_variance)
    S0, S1, m = spd(seed, d), spd(seed + 9, d), normal(seed, d)
    bridge = gaussian_schrodinger_bridge(m, S0, 0 * m, S1, variance)
    joint = torch.cat([torch.cat([S0, bridge.cross], 1), torch.cat([bridge.cross.mT, S1], 1)])
    precision = torch.linalg.inv(joint)
    scale = float(precision.abs().max())
    close(precision[:d, d:] / scale, -torch.eye(d, dtype=F64) / variance / scale, rtol=1e-7, atol=1e-8)


def test_limits_of_the_gaussian_bridge():
    S0, S1, m = torch.eye(2, dtype=F64), torch.tensor([[1.4, 0.8], [0.8, 1.2]], dtype=F64), torch.zeros(2, dtype=F64)
    # ε → 0: the symmetric root of S1 (inventory B9.11), ε → ∞: S0 S1/ε
    close(
        gaussian_schrodinger_bridge(m, S0, m, S1, 1e-8).cross, [[1.1234, 0.3714], [0.3714, 1.0306]], atol=1e-4, rtol=0
    )
    close(1e12 * gaussian_schrodinger_bridge(m, S0, m, S1, 1e12).cross, S1, rtol=1e-6)


def test_the_drift_of_the_gaussian_bridge_carries_its_marginals():
    S0, S1 = spd(1), spd(2)
    m0, m1 = torch.tensor([1.0, 0.0], dtype=F64), torch.tensor([-1.0, 2.0], dtype=F64)
    schrodinger = gaussian_schrodinger_bridge(m0, S0, m1, S1, 0.7)
    for bridge in (schrodinger, GaussianBridge(m0, S0, m1, S1, torch.zeros(2, 2, dtype=F64), 0.7)):
        step = 1e-5
        for t in (0.1, 0.5, 0.9):
            # ṁ = u(m), Σ̇ = KΣ + ΣKᵀ + εI with K the matrix of the drift
            mean, cov = bridge.marginal(t)
            u = bridge.drift(mean.unsqueeze(0), t)[0]
            K = (bridge.drift(mean + torch.eye(2, dtype=F64), t) - u).mT
            before, after = bridge.marginal(t - step), bridge.marginal(t + step)
            close(u, (after[0] - before[0]) / (2 * step), rtol=1e-7, atol=1e-7)
            expected = K @ cov + cov @ K.mT + 0.7 * torch.eye(2)
            close(expected, (after[1] - before[1]) / (2 * step), rtol=1e-6, atol=1e-6)


def test_the_drift_of_a_gaussian_bridge_is_the_regression_of_its_end():
    """With a cross-covariance far from symmetric: (x_1 - x_t)/(1 - t) regressed on x_t, from joint draws."""
    n, t, g = 200_000, 0.4, seeded(4)
    zero = torch.zeros(2, dtype=F64)
    S0, S1 = spd(1), spd(2)
    cross = (
        torch.linalg.cholesky(S0) @ torch.tensor([[0.0, 0.8], [-0.8, 0.0]], dtype=F64) @ torch.linalg.cholesky(S1).mT
    )
    joint = torch.cat([torch.cat([S0, cross], 1), torch.cat([cross.mT, S1], 1)])
    ends = torch.randn(n, 4, generator=g, dtype=F64) @ torch.linalg.cholesky(joint).mT
    x = brownian_bridge(ends[:, :2], ends[:, 2:], torch.tensor([t]), 0.3, generator=g)[0]
    target = (ends[:, 2:] - x) / (1 - t)
    expected = GaussianBridge(zero, S0, zero, S1, cross, 0.3).drift(x, t)
    error = target - expected  # orthogonal to every linear function of x
    products = error.unsqueeze(2) * x.unsqueeze(1)
    assert bool((products.mean(0).abs() < 5 * products.std(0) / math.sqrt(n)).all())


def grid_bridge(variance, n=401, reach=5.0, ends=(TWO, ONE)):
    x = torch.linspace(-reach, reach, n, dtype=F64).unsqueeze(1)
    p0, p1 = (law.log_prob(x).softmax(0) for law in ends)
    return schrodinger_bridge(x, x, p0, p1, variance)


@pytest.mark.parametrize(
    ("sigma", "correlation"), [(0.1, 0.881), (0.3, 0.847), (0.6, 0.766), (1.0, 0.585), (3.0, 0.100)]
)
def test_correlations_of_the_bridge_between_two_modes_and_one(sigma, correlation):
    bridge = grid_bridge(sigma**2)
    assert bridge.correlation == pytest.approx(correlation, abs=6e-4)  # inventory B9.9
    assert bridge.residual < 1e-8


def relative_entropy(plan, x, p0, variance):
    """Of the joint law of the ends to that of Brownian motion started from p0."""
    dx = float(x[1] - x[0])
    kernel = torch.exp(-((x - x.mT) ** 2) / (2 * variance)) / math.sqrt(2 * math.pi * variance) * dx
    return float(torch.special.xlogy(plan, plan).sum() - (plan * (p0.log()[:, None] + kernel.log())).sum())


@pytest.mark.parametrize("sigma", [0.3, 0.6, 1.0])
def test_no_coupling_is_nearer_to_brownian_motion(sigma):
    x = torch.linspace(-5, 5, 801, dtype=F64).unsqueeze(1)
    p0, p1 = (law.log_prob(x).softmax(0) for law in (TWO, ONE))
    bridge = schrodinger_bridge(x, x, p0, p1, sigma**2)
    entropy = 0.5 * math.log(2 * math.pi * math.e * 0.2025)
    independent = (4.1225 + 0.2025) / (2 * sigma**2) + 0.5 * math.log(2 * math.pi * sigma**2) - entropy
    assert relative_entropy(p0[:, None] * p1, x, p0, sigma**2) == pytest.approx(independent, rel=1e-6)
    found = relative_entropy(bridge.plan, x, p0, sigma**2)
    assert found < independent
    if sigma <= 0.6:
        assert found == pytest.approx({0.3: 15.39, 0.6: 4.327}[sigma], rel=5e-4)  # inventory B9.9
    # against couplings near by: move mass around a rectangle, which keeps the marginals
    for i, j, k, m in ((240, 400, 560, 380), (400, 390, 420, 410)):
        other, mass = bridge.plan.clone(), 0.3 * float(min(bridge.plan[i, m], bridge.plan[k, j]))
        other[[i, k, i, k], [j, m, m, j]] += mass * torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=F64)
        assert relative_entropy(other, x, p0, sigma**2) > found


def test_grid_and_closed_form_agree_for_gaussians():
    ends = line((0.0,), (1.0,), 1.3), line((0.5,), (1.0,), 0.7)
    bridge = grid_bridge(0.5, n=601, reach=9.0, ends=ends)
    one = torch.ones(1, dtype=F64)
    exact = gaussian_schrodinger_bridge(0 * one, 1.69 * one[:, None], 0.5 * one, 0.49 * one[:, None], 0.5)
    assert bridge.correlation == pytest.approx(float(exact.cross) / (1.3 * 0.7), rel=1e-6)
    x = torch.linspace(-2, 2, 9, dtype=F64).unsqueeze(1)
    for t in (0.0, 0.5, 0.9):
        close(bridge.drift(x, t), exact.drift(x, t), rtol=1e-5, atol=1e-5)


def test_the_markov_drift_and_the_pinned_paths_are_one_process():
    bridge, n = grid_bridge(0.36, n=201), 5000
    x0 = TWO.sample(n, generator=seeded(0))
    end = euler(bridge.drift, x0, 0.36, 99, seeded(1), end=0.99)
    paths = bridge.sample(n, torch.tensor([0.0, 0.99], dtype=F64), generator=seeded(2))
    for x, y in ((x0, end), (paths[0], paths[1])):
        found = float(torch.corrcoef(torch.cat([x, y], 1).mT)[0, 1])
        assert found == pytest.approx(0.766, abs=5 * (1 - 0.766**2) / math.sqrt(n) + 0.01)


def test_the_bridge_tells_when_its_marginals_are_not_met():
    x = torch.linspace(-5, 5, 101, dtype=F64).unsqueeze(1)
    p0, p1 = (law.log_prob(x).softmax(0) for law in (TWO, ONE))
    with pytest.warns(ConvergenceWarning, match="marginals are off"):
        schrodinger_bridge(x, x, p0, p1, 0.01, max_iter=2)


V = partial(torch.zeros, dtype=F64)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: flow_matching_loss(lambda x, t: x, V(4, 2), V(3, 2), LinearPath()), "one shape"),
        (lambda: flow_matching_loss(lambda x, t: x[:, :1], V(4, 2), V(4, 2), LinearPath()), "the velocity must have"),
        (lambda: LinearPath().alpha(1.2), "interval"),
        (lambda: ot_pairs(V(4, 2), V(5, 2), 2), "one shape"),
        (lambda: ot_pairs(V(4, 2), V(4, 2), 0), "batch_size must be at least 1"),
        (lambda: brownian_bridge(V(4, 2), V(4, 1), V(1)), "one shape"),
        (lambda: brownian_bridge(V(4, 2), V(4, 2), torch.tensor([0.5, 0.2])), "increasing times"),
        (lambda: brownian_bridge(V(4, 2), V(4, 2), torch.tensor([0.5, 1.2])), "increasing times"),
        (lambda: brownian_bridge(V(4, 2), V(4, 2), torch.tensor([0.5]), -1.0), "variance must be at least 0"),
        (lambda: markov_projection(line(), mixture(), 0.1), "dimensions must agree, got 1 and 2"),
        (lambda: markov_projection(line(), line(), 0.1)(V(3, 1), 1.0), "t must be below 1"),
        (lambda: gaussian_schrodinger_bridge(V(2), -spd(0), V(2), spd(0), 0.1), "positive definite"),
        (lambda: gaussian_schrodinger_bridge(V(2), spd(0), V(2), spd(0), 0.0), "variance must be greater than 0"),
        (lambda: gaussian_schrodinger_bridge(V(2), spd(0), V(3), spd(0, 3), 0.1), "one shape"),
        (lambda: schrodinger_bridge(V(3, 1), V(2, 1), torch.ones(3, dtype=F64), V(2) + 0.5, 0.1), "sum"),
        (lambda: grid_bridge(1.0, n=21).drift(V(2, 1), 1.0), "t must be below 1"),
    ],
)
def test_bad_input_of_interpolants(call, message, unchecked):
    with pytest.raises(ValueError, match=message):
        call()
