import math
import warnings
from functools import partial

import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coursekit import training
from coursekit.diffusion import (
    GaussianMixture,
    ScoreModel,
    StabilityWarning,
    VESchedule,
    VPSchedule,
    denoising_loss,
    dsm_floor,
    dsm_loss,
    empirical_score,
    mixture_score,
    mode_statistics,
    noised,
    ode_log_likelihood,
    reverse_process,
    sample,
    time_grid,
    tweedie,
)
from coursekit.interpolants import LinearPath, TrigonometricPath
from coursekit.nn import TimeMLP

F64 = torch.float64
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")),
]
SCHEDULES = {
    "VP": VPSchedule(),
    "VP of length 3": VPSchedule(0.3, 5, T=3),
    "OU": VPSchedule(2, 2, T=4),
    "VE": VESchedule(0.02, 30),
    "VE of length 2": VESchedule(0.1, 5, T=2),
    "linear": LinearPath(T=0.999),
    "trigonometric": TrigonometricPath(T=0.999),
}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
seeds = st.integers(0, 2**31 - 1)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def normal(seed, *shape, dtype=F64):
    return torch.randn(*shape, generator=seeded(seed), dtype=dtype)


def close(actual, expected, rtol=1e-10, atol=1e-10):
    np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), rtol=rtol, atol=atol)


def mixture(seed=0, k=3, d=2):
    """Random weights, means and full covariances."""
    A = normal(seed, k, d, d)
    weights = torch.softmax(normal(seed + 1, k), 0)
    return GaussianMixture(weights, 2 * normal(seed + 2, k, d), A @ A.mT + 0.3 * torch.eye(d, dtype=F64))


def line(means=(-2.0, 2.0), weights=(0.3, 0.7), std=0.5):
    """The common test target of Cao's chapter 5."""
    k = len(means)
    covs = torch.full((k, 1, 1), std**2, dtype=F64)
    return GaussianMixture(torch.tensor(weights, dtype=F64), torch.tensor(means, dtype=F64).unsqueeze(1), covs)


def gaussian(std=1.0, mean=0.0, d=1):
    covs = std**2 * torch.eye(d, dtype=F64).unsqueeze(0)
    return GaussianMixture(torch.ones(1, dtype=F64), torch.full((1, d), mean, dtype=F64), covs)


def grid9(std=0.5, dtype=F64):
    centers = torch.tensor([-6.0, 0.0, 6.0], dtype=dtype)
    covs = std**2 * torch.eye(2, dtype=dtype).expand(9, 2, 2)
    return GaussianMixture(torch.full((9,), 1 / 9, dtype=dtype), torch.cartesian_prod(centers, centers), covs)


VP, OU = SCHEDULES["VP"], SCHEDULES["OU"]


# --- schedules ------------------------------------------------------------------------------------------


def test_the_integral_and_the_signal_left_of_the_usual_schedule():
    close(VP.integral(1.0), 10.05)  # 0.1 + 19.9/2
    close(VP.alpha(1.0), math.exp(-10.05 / 2))
    # 1 - e^{-B}, B = 0.1 t + 9.95 t² (inventory R.54)
    close(VP.sigma(torch.tensor([0.1, 0.5, 1.0], dtype=F64)) ** 2, [0.103718, 0.920936, 0.999957], atol=1e-6)
    close(OU.alpha(0.7), math.exp(-0.7))
    close(OU.sigma(0.7) ** 2, 1 - math.exp(-1.4))


def test_the_variance_of_the_exploding_schedule_is_that_of_song():
    schedule = VESchedule(0.1, 5, T=2)
    t = torch.tensor([0.5, 1.3, 2.0], dtype=F64)
    close(schedule.sigma(t) ** 2, 0.1**2 * (50**t - 1))  # r^{2t/T}, r = 50, T = 2
    assert schedule.prior_std == pytest.approx(math.sqrt(25 - 0.01))
    assert VP.prior_std == 1.0


@every_schedule
def test_small_times_keep_their_digits(schedule):
    ratio = float(schedule.sigma(torch.tensor(1e-12, dtype=F64)) / schedule.sigma(torch.tensor(1e-14, dtype=F64)))
    assert ratio == pytest.approx(100 if isinstance(schedule, (LinearPath, TrigonometricPath)) else 10, rel=1e-6)


@every_schedule
def test_derivatives_are_those_of_alpha_and_sigma(schedule):
    t = torch.linspace(0.01, 0.98, 40, dtype=F64) * schedule.T
    for function, derivative in ((schedule.alpha, schedule.alpha_dot), (schedule.sigma, schedule.sigma_dot)):
        points = t.clone().requires_grad_()
        value = function(points)
        slope = torch.autograd.grad(value.sum(), points)[0] if value.requires_grad else torch.zeros_like(t)
        close(derivative(t), slope)


@every_schedule
def test_mean_and_variance_solve_the_moment_equations_of_the_forward_equation(schedule):
    ends = 0.05 * schedule.T, 0.9 * schedule.T

    def moments(t, y):
        rate, beta = float(schedule.rate(t)), float(schedule.beta(t))
        return [rate * y[0], 2 * rate * y[1] + beta]

    start = [float(schedule.alpha(ends[0])), float(schedule.sigma(ends[0])) ** 2]
    end = scipy.integrate.solve_ivp(moments, ends, start, rtol=1e-10, atol=1e-12).y[:, -1]
    close(end, [float(schedule.alpha(ends[1])), float(schedule.sigma(ends[1])) ** 2], rtol=2e-5)


@every_schedule
def test_time_undoes_the_log_signal_to_noise_ratio(schedule):
    t = torch.linspace(1e-6, 1, 50, dtype=F64) * schedule.T
    close(schedule.time(schedule.log_snr(t)), t, rtol=1e-8)
    assert bool((schedule.log_snr(t).diff() < 0).all())


@every_schedule
def test_schedules_keep_shape_and_dtype_of_times(schedule):
    for dtype in (torch.float32, F64):
        t = torch.full((2, 3), 0.3, dtype=dtype)
        for value in (schedule.alpha(t), schedule.sigma(t), schedule.beta(t), schedule.rate(t)):
            assert value.shape == t.shape and value.dtype == dtype
    assert schedule.alpha(0.3).shape == ()


def test_noising_in_two_stages_is_noising_once():
    x0, s, t = torch.zeros(1, 1, dtype=F64), 0.3, 0.8
    step = VP.alpha(t) / VP.alpha(s)
    close(step**2 * VP.sigma(s) ** 2 + (1 - step**2), VP.sigma(t) ** 2)
    x, noise = noised(x0.expand(200_000, 1), t, VP, generator=seeded(0))
    close(x, VP.sigma(t) * noise)
    assert float(x.var()) == pytest.approx(float(VP.sigma(t) ** 2), abs=5 * math.sqrt(2 / 200_000))


def test_noised_takes_one_time_or_one_for_each_image():
    x0 = normal(0, 5, 2, 3, 3)
    t = torch.tensor([0.0, 0.2, 0.4, 0.6, 1.0], dtype=F64)
    x, noise = noised(x0, t, VP, generator=seeded(1))
    close(x[0], x0[0])
    close(x[3], VP.alpha(0.6) * x0[3] + VP.sigma(0.6) * noise[3], rtol=1e-6)
    with pytest.raises(ValueError, match=r"one time or 5 of them, got shape \(3,\)"):
        noised(x0, t[:3], VP)


@pytest.mark.parametrize("bad", [-1e-3, 1.1, math.nan, torch.tensor([0.5, 1.5])])
def test_times_outside_the_schedule_are_told(bad):
    for call in (VP.alpha, VP.sigma, VP.beta, VP.rate):
        with pytest.raises(ValueError, match=r"t must lie in the schedule's interval \[0, 1\]"):
            call(bad)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VPSchedule(0, 20), "beta_min must be greater than 0"),
        (lambda: VPSchedule(0.1, math.inf), "beta_max"),
        (lambda: VPSchedule(0.1, 20, T=0), "T must be greater than 0"),
        (lambda: VESchedule(1.0, 0.5), "sigma_max must be greater than 1"),
        (lambda: VESchedule(0, 0.5), "sigma_min must be greater than 0"),
        (lambda: LinearPath(T=1.5), "T must be at most 1"),
    ],
)
def test_bad_parameters_of_schedules(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# --- exact scores ---------------------------------------------------------------------------------------


def test_the_density_of_a_mixture_is_scipys():
    law, x = mixture(), normal(9, 7, 2)
    density = sum(
        float(w) * scipy.stats.multivariate_normal(m.numpy(), c.numpy()).pdf(x.numpy())
        for w, m, c in zip(law.weights, law.means, law.covs, strict=True)
    )
    close(law.log_prob(x), np.log(density))


@given(seed=seeds, k=st.integers(1, 4), d=st.integers(1, 4))
@settings(max_examples=30)
def test_score_and_hessian_are_derivatives_of_the_log_density(seed, k, d):
    law, x = mixture(seed, k, d), normal(seed + 5, 6, d).requires_grad_()
    score = torch.autograd.grad(law.log_prob(x).sum(), x)[0]
    close(law.score(x).detach(), score, rtol=1e-8, atol=1e-8)
    hessian = torch.stack([torch.autograd.functional.hessian(lambda y: law.log_prob(y), row) for row in x.detach()])
    close(law.hessian(x).detach(), hessian, rtol=1e-7, atol=1e-7)


@every_schedule
def test_the_score_of_a_noised_mixture_at_one_time_and_at_many(schedule):
    law, x = mixture(2, 3, 3), normal(1, 6, 3)
    score, times = mixture_score(law, schedule), torch.linspace(0, 0.99, 6, dtype=F64) * schedule.T
    rows = [law.noised(schedule.alpha(t), schedule.sigma(t)).score(x[i]) for i, t in enumerate(times)]
    close(score(x, times), torch.stack(rows), rtol=1e-8, atol=1e-8)
    for i, t in enumerate(times.tolist()):
        close(score(x, t)[i], rows[i], rtol=1e-8, atol=1e-8)


def test_far_away_the_score_is_that_of_the_nearest_component():
    law = line()
    close(law.score(torch.tensor([[1e4]], dtype=F64)), [[-(1e4 - 2) / 0.25]])
    assert bool(torch.isfinite(law.log_prob(torch.tensor([[1e8]], dtype=F64))).all())


def test_noising_a_mixture_convolves_its_density():
    law, alpha, sigma, x = line(), 0.6, 0.4, 0.3
    noisy = law.noised(alpha, sigma).log_prob(torch.tensor([x], dtype=F64)).exp()
    kernel = scipy.stats.norm(x, sigma)
    direct, _ = scipy.integrate.quad(
        lambda y: float(law.log_prob(torch.tensor([y], dtype=F64)).exp()) * kernel.pdf(alpha * y), -6, 6, limit=200
    )
    assert float(noisy) == pytest.approx(direct, rel=1e-8)


def test_the_posterior_is_bayes():
    law, alpha, sigma = mixture(3), 0.7, 0.5
    x, y = normal(4, 2), normal(5, 2)
    law_of_x0 = GaussianMixture(*law.posterior(x, alpha, sigma))
    prior, evidence = law.log_prob(y), law.noised(alpha, sigma).log_prob(x)
    likelihood = -0.5 * ((x - alpha * y) ** 2).sum() / sigma**2 - math.log(2 * math.pi * sigma**2)
    close(law_of_x0.log_prob(y), prior + likelihood - evidence)


@given(seed=seeds, d=st.integers(1, 3))
@settings(max_examples=20)
def test_tweedie_gives_the_posterior_mean_and_the_hessian_its_covariance(seed, d):
    law, x = mixture(seed, 3, d), normal(seed + 7, 5, d)
    alpha, sigma = 0.8, 0.6
    noisy, posterior = law.noised(alpha, sigma), law.posterior(x, alpha, sigma)
    close(tweedie(x, noisy.score(x), alpha, sigma), posterior.mean, rtol=1e-8, atol=1e-8)
    second = (sigma / alpha) ** 2 * (torch.eye(d, dtype=F64) + sigma**2 * noisy.hessian(x))
    close(posterior.cov, second, rtol=1e-7, atol=1e-8)


def test_a_sharp_two_point_prior_has_the_denoiser_tanh():
    law = line((-1.0, 1.0), (0.5, 0.5), std=1e-6)
    x = torch.linspace(-2, 2, 9, dtype=F64).unsqueeze(1)
    close(law.posterior(x, 1.0, 0.7).mean, torch.tanh(x / 0.49), atol=1e-8)


def test_samples_of_a_mixture_have_its_moments():
    law, n = mixture(11), 200_000
    x = law.sample(n, generator=seeded(1))
    mean = law.weights @ law.means
    cov = torch.einsum(
        "k,kde->de", law.weights, law.covs + (law.means - mean).unsqueeze(2) * (law.means - mean)[:, None]
    )
    z = (x.mean(0) - mean) / (cov.diagonal() / n).sqrt()
    assert bool((z.abs() < 5).all())
    product = (x - mean).unsqueeze(2) * (x - mean).unsqueeze(1)
    assert bool(((product.mean(0) - cov).abs() < 5 * product.std(0) / math.sqrt(n)).all())


def test_stein_identities_of_the_score():
    law, n = grid9().noised(VP.alpha(0.3), VP.sigma(0.3)), 100_000
    x = law.sample(n, generator=seeded(2))
    s = law.score(x)
    for value, expected in ((s[:, 0], 0.0), ((x * s).sum(1), -2.0)):
        assert float(value.mean()) == pytest.approx(expected, abs=5 * float(value.std()) / math.sqrt(n))
    difference = (s * s).sum(1) + law.hessian(x).diagonal(dim1=1, dim2=2).sum(1)
    assert float(difference.mean()) == pytest.approx(0, abs=5 * float(difference.std()) / math.sqrt(n))


def test_the_score_of_a_data_set_is_that_of_its_narrow_mixture():
    data, x = normal(0, 20, 3), normal(1, 7, 3)
    law = GaussianMixture(torch.full((20,), 1 / 20, dtype=F64), data, 1e-14 * torch.eye(3, dtype=F64).expand(20, 3, 3))
    expected = law.noised(0.8, 0.3).score(x)
    for chunk in (1, 3, 1000):
        close(empirical_score(x, data, 0.8, 0.3, chunk=chunk), expected, rtol=1e-8, atol=1e-8)


def test_a_process_driven_by_the_data_ends_on_the_data():
    data = normal(3, 30, 4)
    score = lambda x, t: empirical_score(x, data, OU.alpha(t), OU.sigma(t))  # noqa: E731
    x = sample(score, OU, 200, 4, 200, t_min=1e-4, generator=seeded(4), dtype=F64)
    distance = torch.cdist(x, data).min(1).values
    # what is left is the noise of time t_min, of variance 2e-4 in each of 4 directions
    assert float(distance.square().mean()) == pytest.approx(4 * 2e-4, rel=0.2)


@pytest.mark.parametrize("device", DEVICES)
def test_kernels_stay_on_the_device_and_in_the_dtype(device):
    law = grid9(dtype=torch.float32)
    law = GaussianMixture(law.weights.to(device), law.means.to(device), law.covs.to(device))
    x = law.sample(5, generator=seeded(0))
    results = [x, law.score(x), law.log_prob(x), law.hessian(x), law.posterior(x, 0.5, 0.5).mean]
    results += [empirical_score(x, x, 0.5, 0.5), noised(x, 0.5, VP)[0]]
    results += [
        sample(mixture_score(law, VP), VP, 4, 2, 3, device=device),
        ode_log_likelihood(law_score(law), VP, x, 3),
    ]
    for result in results:
        assert result.dtype == torch.float32 and result.device.type == device


def law_score(law):
    return mixture_score(law, VP)


def bad_mixture(**changes):
    law = mixture()
    parts = {"weights": law.weights, "means": law.means, "covs": law.covs} | changes
    return partial(GaussianMixture, **parts)


EYES = torch.eye(2, dtype=F64).expand(3, 2, 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (bad_mixture(weights=torch.tensor([0.5, 0.5, 0.5], dtype=F64)), "sum 1, got .* with sum 1.5"),
        (bad_mixture(weights=torch.tensor([1.5, -0.5, 0.0], dtype=F64)), "non-negative"),
        (bad_mixture(weights=torch.ones(2, dtype=F64) / 2), r"weights must have shape \(3,\)"),
        (bad_mixture(covs=-EYES), "positive definite, got a smallest eigenvalue of -1"),
        (bad_mixture(covs=EYES + torch.tensor([[0, 0.1], [0, 0]])), "symmetric"),
        (bad_mixture(covs=EYES[:2]), r"covs must have shape \(3, 2, 2\)"),
        (bad_mixture(means=torch.full((3, 2), math.nan, dtype=F64)), "means must be finite"),
        (bad_mixture(means=torch.zeros(3, dtype=F64)), r"means must have shape \(k, d\)"),
        (bad_mixture(covs=EYES.float()), "covs must be floating, all three alike"),
        (lambda: mixture().score(torch.zeros(4, 3, dtype=F64)), "last axis of 2"),
        (lambda: empirical_score(torch.zeros(4, 3), torch.zeros(4, 2), 1.0, 0.1), "last axis of 2"),
        (lambda: empirical_score(torch.zeros(4, 2), torch.zeros(4, 2), 1.0, 0.0), "sigma must be greater than 0"),
        (lambda: tweedie(torch.zeros(4, 2), torch.zeros(4), 1.0, 0.1), "score must be a tensor with the shape of"),
        (lambda: mixture().sample(0), "n must be at least 1"),
        (
            lambda: mode_statistics(torch.zeros(4, 2), torch.zeros(3, 2), torch.ones(2)),
            r"weights must have shape \(3,\)",
        ),
    ],
)
def test_bad_input_of_scores(make, message, unchecked):
    with pytest.raises(ValueError, match=message):
        make()


# --- learning -------------------------------------------------------------------------------------------


def test_floors_of_the_nine_modes():
    three = partial(line, (-6.0, 0.0, 6.0), (1 / 3, 1 / 3, 1 / 3))
    # Monte Carlo with 4e5 points in the inventory (B9.4), ±0.001; ours are 0.36921 and 0.52311
    assert dsm_floor(three(0.5), VP) == pytest.approx(0.371, abs=0.003)
    assert dsm_floor(three(1.5), VP) == pytest.approx(0.524, abs=0.003)


def test_the_floor_of_gaussian_data_is_a_closed_form():
    # σ² E s² = σ²/v, v = α² c² + σ²; for c = 1, v = 1 and the floor is the mean of α²
    expected = scipy.integrate.quad(lambda t: math.exp(-(0.1 * t + 9.95 * t * t)), 1e-4, 1)[0] / (1 - 1e-4)
    assert dsm_floor(gaussian(), VP) == pytest.approx(expected, rel=1e-8)
    v = lambda t: 9 * math.exp(-2 * t) + 1 - math.exp(-2 * t)  # noqa: E731
    expected = scipy.integrate.quad(lambda t: 9 * math.exp(-2 * t) / v(t), 1e-4, 4)[0] / (4 - 1e-4)
    assert dsm_floor(gaussian(3, mean=5), OU) == pytest.approx(expected, rel=1e-8)


def losses(model, law, schedule, n, repeats):
    values = [
        float(dsm_loss(model, law.sample(n, generator=seeded(i)), schedule, generator=seeded(100 + i)))
        for i in range(repeats)
    ]
    return np.mean(values), np.std(values, ddof=1) / math.sqrt(repeats)


def test_the_exact_score_has_the_floor_and_zero_has_one():
    law = line()
    mean, se = losses(mixture_score(law, VP), law, VP, 50_000, 12)
    assert mean == pytest.approx(dsm_floor(law, VP), abs=5 * se)
    mean, se = losses(lambda x, t: torch.zeros_like(x), law, VP, 100_000, 12)
    assert mean == pytest.approx(1, abs=5 * se)


def test_the_excess_of_a_wrong_score_is_its_distance_from_the_exact_one():
    law, schedule = gaussian(1), VP
    wrong = lambda x, t: -1.5 * x  # noqa: E731
    mean, se = losses(wrong, law, schedule, 50_000, 12)
    # p_t = N(0, 1) for all t: |s - s*|² = x²/4, so the excess is E σ²/4
    sigma2 = 1 - scipy.integrate.quad(lambda t: math.exp(-(0.1 * t + 9.95 * t * t)), 0, 1)[0]
    assert mean - dsm_floor(law, schedule) == pytest.approx(sigma2 / 4, abs=5 * se)


def test_times_are_stratified_and_shuffled():
    seen = []

    def model(x, t):
        seen.append(t)
        return torch.zeros_like(x)

    dsm_loss(model, torch.zeros(1000, 2), VP, t_min=0.1, generator=seeded(0))
    t = seen[0].sort().values
    edges = 0.1 + 0.9 * torch.arange(1001) / 1000
    assert bool((t >= edges[:-1] - 1e-6).all() and (t <= edges[1:] + 1e-6).all())
    assert float(torch.corrcoef(torch.stack([seen[0], torch.arange(1000.0)]))[0, 1]) == pytest.approx(0, abs=0.16)


@pytest.mark.parametrize("shape", [(2,), (1, 4, 4)])
@every_schedule
def test_a_silent_network_gives_the_score_of_gaussian_data(schedule, shape):
    model, x = ScoreModel(Silent(), schedule, data_std=3.0), normal(0, 6, *shape)
    t = torch.linspace(0.1, 0.9, 6, dtype=F64) * schedule.T
    v = 9 * schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2
    close(model(x, t), -x / v.view(-1, *(1,) * len(shape)))
    close(model(x, float(t[2])), -x / v[2])


def test_the_network_predicts_the_error_of_the_linear_denoiser():
    """With net = (x_0 - linear guess)/its error for the one true x_0, the score is that of a point mass."""
    x0, c, t = normal(0, 5, 2), 2.0, 0.4
    alpha, sigma = VP.alpha(t), VP.sigma(t)
    v = alpha**2 * c * c + sigma**2

    class Oracle(torch.nn.Module):
        def forward(self, scaled, level):
            close(level, torch.full((5,), math.log(float(sigma / alpha))), rtol=1e-6)
            x = scaled * v.sqrt()
            return (x0 - alpha * c * c / v * x) / (c * sigma / v.sqrt())

    x = normal(1, 5, 2)
    close(ScoreModel(Oracle(), VP, c)(x, t), -(x - alpha * x0) / sigma**2, rtol=1e-6)


class Silent(torch.nn.Module):
    def forward(self, x, t):
        return torch.zeros_like(x)


@pytest.mark.parametrize("schedule", [VP, OU, SCHEDULES["VE"]], ids=["VP", "OU", "VE"])
def test_a_silent_network_has_the_denoising_loss_one(schedule):
    """On Gaussian data of the model's size: (x_0 - linear guess)/its error is standard normal at every level."""
    model, n = ScoreModel(Silent(), schedule, 2.5), 200_000
    loss = float(denoising_loss(model, 2.5 * normal(0, n, 1), generator=seeded(1)))
    assert loss == pytest.approx(1, abs=5 * math.sqrt(2 / n))


def test_the_denoising_loss_draws_normal_levels_and_weighs_the_same_error():
    seen = []

    class Watcher(torch.nn.Module):
        def forward(self, x, t):
            seen.append(t)
            return torch.full_like(x, 0.3)

    model, n = ScoreModel(Watcher(), VP, 1.0), 100_000
    # for unit Gaussian data the target is standard normal given x: E(0.3 - F)² = 1 + 0.09
    loss = float(denoising_loss(model, normal(0, n, 1), level_mean=0.6, level_std=0.8, generator=seeded(1)))
    assert loss == pytest.approx(1.09, abs=5 * math.sqrt(2.4 / n))
    u = seen[0]
    assert float(u.mean()) == pytest.approx(0.6, abs=1e-3) and float(u.std()) == pytest.approx(0.8, abs=1e-3)
    with pytest.raises(ValueError, match="level_std must be at least 0"):
        denoising_loss(model, normal(0, 4, 1), level_std=-1.0)


def test_training_reaches_the_floor():
    """The target of the course: an excess of 0.01 over the floor; the best linear score is 0.18 above it."""
    generator, law = seeded(0), grid9(dtype=torch.float32)
    data = law.sample(128_000, generator=generator)
    model = ScoreModel(TimeMLP(2, (64, 64), generator=generator), VP, float(data.std()))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    loss = partial(dsm_loss, schedule=VP, generator=generator)
    options = {"schedule": training.cosine, "ema_decay": 0.99, "generator": generator}
    learned = training.fit(model, loss, (data,), optimizer, epochs=4, batch_size=512, **options).ema
    exact, excess = mixture_score(grid9(), VP), []
    with torch.no_grad():
        for t in torch.linspace(1e-4, 1, 60).tolist():
            x, _ = noised(data[:2000], t, VP, generator=generator)
            excess.append(float((VP.sigma(t) ** 2 * (learned(x, t) - exact(x.double(), t)) ** 2).mean()))
    assert np.mean(excess) < 0.01


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: dsm_loss(lambda x, t: x[:, :1], torch.zeros(4, 2), VP),
            r"shape of the points, \(4, 2\), got \(4, 1\)",
        ),
        (lambda: dsm_loss(lambda x, t: None, torch.zeros(4, 2), VP), "got NoneType"),
        (
            lambda: dsm_loss(lambda x, t: x, torch.zeros(4, 2), VP, t_min=1.0),
            "t_min must be below the schedule's T = 1",
        ),
        (lambda: dsm_loss(lambda x, t: x, torch.zeros(4, 2), VP, t_min=0.0), "t_min must be greater than 0"),
        (lambda: dsm_floor(grid9(), VP), "mixture must have one dimension, got 2"),
        (lambda: ScoreModel(torch.nn.Identity(), VP, 0.0), "data_std must be greater than 0"),
        (lambda: ScoreModel(TimeMLP(2, (4,)), VP)(torch.zeros(3, 2), 1.2), "interval"),
        (
            lambda: ScoreModel(Narrow(), VP)(torch.zeros(3, 2), 0.5),
            "the network's output must be a tensor with the shape",
        ),
    ],
)
def test_bad_input_of_learning(call, message, unchecked):
    with pytest.raises(ValueError, match=message):
        call()


class Narrow(torch.nn.Module):
    def forward(self, x, t):
        return x[:, :1]


# --- the reverse process --------------------------------------------------------------------------------


@every_schedule
def test_grids_run_from_noise_to_data(schedule):
    for grid in ("linear", "log-snr"):
        t = time_grid(schedule, 20, grid=grid, t_min=0.01)
        assert t.dtype == F64 and t.shape == (21,) and bool((t.diff() < 0).all())
        assert float(t[0]) == schedule.T and float(t[-1]) == 0.01
        even = t if grid == "linear" else schedule.log_snr(t)
        close(even.diff(), float(even[-1] - even[0]) / 20, rtol=1e-6)


def gaussian_recursion(schedule, times, law, noise, heun=False):
    """Mean and variance of the numerical reverse process for Gaussian data, from N(0, prior_std²), exactly."""
    mean, variance = 0.0, schedule.prior_std**2
    for t0, t1 in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
        h, rows = t0 - t1, []
        for t in (t0, t1):
            noisy = law.noised(schedule.alpha(t), schedule.sigma(t))
            m, v = float(noisy.means), float(noisy.covs)
            rate, beta, epsilon = float(schedule.rate(t)), float(schedule.beta(t)), noise(t)
            gain = 0.5 * (beta + epsilon)
            rows.append((-rate - gain / v, gain * m / v, epsilon))  # slope A x + b
        (A0, b0, e0), (A1, b1, e1) = rows
        if heun:
            q = 0.5 * (e0 + e1)
            factor = 1 + 0.5 * h * (A0 + A1 * (1 + h * A0))
            mean = factor * mean + 0.5 * h * (b0 + b1 + A1 * h * b0)
            variance = factor**2 * variance + q * h * (1 + 0.5 * h * A1) ** 2
        else:
            mean = (1 + h * A0) * mean + h * b0
            variance = (1 + h * A0) ** 2 * variance + e0 * h
    return mean, variance


@pytest.mark.parametrize("schedule", [VP, OU, SCHEDULES["VE"]], ids=["VP", "OU", "VE"])
@pytest.mark.parametrize("method", ["euler", "heun"])
@pytest.mark.parametrize("strength", [0.0, 1.0, 2.0])
def test_gaussian_data_follow_the_exact_recursion(schedule, method, strength):
    """Few steps, so that the start, the noise of each step and the method's own error all show."""
    law, n, t_min = gaussian(0.6, mean=1.5), 200_000, 0.05 * schedule.T
    noise = lambda t: strength * schedule.beta(t)  # noqa: E731
    options = {"noise": noise, "method": method, "t_min": t_min, "generator": seeded(0), "dtype": F64}
    x = sample(mixture_score(law, schedule), schedule, n, 1, 12, **options)
    times, level = time_grid(schedule, 12, t_min=t_min), lambda t: strength * float(schedule.beta(t))
    mean, variance = gaussian_recursion(schedule, times, law, level, heun=method == "heun")
    assert float(x.mean()) == pytest.approx(mean, abs=5 * math.sqrt(variance / n))
    assert float(x.var()) == pytest.approx(variance, rel=5 * math.sqrt(2 / n))


@pytest.mark.parametrize("schedule", [VP, OU, SCHEDULES["VE"]], ids=["VP", "OU", "VE"])
@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0, 3.0])
def test_every_noise_level_has_the_marginals_of_the_forward_process(schedule, strength):
    """Gaussian data, from the exact p_T: as steps shrink, mean and variance end at those of p at t_min."""
    law, n, t_min = gaussian(0.6, mean=1.5), 50_000, 0.05 * schedule.T
    score = mixture_score(law, schedule)
    start = law.noised(schedule.alpha(schedule.T), schedule.sigma(schedule.T)).sample(n, generator=seeded(1))
    times = time_grid(schedule, 300, t_min=t_min)
    noise = lambda t: strength * schedule.beta(t)  # noqa: E731
    end = reverse_process(score, schedule, start, times, noise=noise, method="heun", generator=seeded(2))[-1]
    expected = law.noised(schedule.alpha(t_min), schedule.sigma(t_min))
    variance = float(expected.covs)
    assert float(end.mean()) == pytest.approx(float(expected.means), abs=5 * math.sqrt(variance / n) + 1e-3)
    assert float(end.var()) == pytest.approx(variance, rel=5 * math.sqrt(2 / n) + 2e-3)


def test_the_classical_reverse_has_the_joint_law_of_the_forward_process():
    law, n = line(), 100_000
    schedule = VPSchedule(2, 2, T=1)
    x0 = law.sample(n, generator=seeded(0))
    xT, _ = noised(x0, 1.0, schedule, generator=seeded(1))
    y = reverse_process(
        mixture_score(law, schedule), schedule, xT, time_grid(schedule, 400, t_min=1e-3), generator=seeded(2)
    )[-1]
    for end in (x0, y):
        # E x_0 x_T = α E x_0² = e^{-1} (3.61 + 0.64)
        product = end * xT
        expected = math.exp(-1) * 4.25
        assert float(product.mean()) == pytest.approx(expected, abs=5 * float(product.std()) / math.sqrt(n) + 0.01)


def test_without_noise_points_move_along_quantiles():
    law = line()
    quantile = scipy.stats.norm.cdf([-1.5, -0.6, 0.3, 1.2])
    T, t_min = OU.T, 1e-3
    noisy = [law.noised(OU.alpha(t), OU.sigma(t)) for t in (T, t_min)]

    def ppf(mix, u):
        cdf = lambda x: float(  # noqa: E731
            (mix.weights * torch.special.ndtr((x - mix.means[:, 0]) / mix.covs[:, 0, 0].sqrt())).sum()
        )
        return scipy.optimize.brentq(lambda x: cdf(x) - u, -20, 20, xtol=1e-13)

    start = torch.tensor([[ppf(noisy[0], u)] for u in quantile], dtype=F64)
    times = time_grid(OU, 400, t_min=t_min)
    path = reverse_process(mixture_score(law, OU), OU, start, times, noise=0.0, method="heun")
    close(path[-1, :, 0], [ppf(noisy[1], u) for u in quantile], atol=2e-4)
    back = reverse_process(mixture_score(law, OU), OU, path[-1], times.flip(0), noise=0.0, method="heun")
    close(back[-1], start, atol=1e-3)


def test_noise_that_is_not_balanced_by_the_drift_would_be_seen():
    """The bias law within a mode: variance v/(1 - εh/4v) at small β, here with v = 1/4, ε = 20, h = 1/100."""
    quiet = VPSchedule(1e-6, 1e-6)
    law = gaussian(0.5)
    times = torch.linspace(1.0, 0.0, 101, dtype=F64)
    start = law.sample(100_000, generator=seeded(0))
    x = reverse_process(mixture_score(law, quiet), quiet, start, times, noise=20.0, generator=seeded(1))[-1]
    assert float(x.var()) == pytest.approx(0.25 / (1 - 0.2), rel=5 * math.sqrt(2 / 100_000) + 1e-3)


def test_the_nine_modes_are_equally_filled():
    law, n = grid9(), 18_000
    x = sample(mixture_score(law, VP), VP, n, 2, 100, method="heun", generator=seeded(3), dtype=F64)
    found = mode_statistics(x, law.means)
    assert scipy.stats.chisquare(found.counts.numpy()).pvalue > 1e-6
    assert found.std == pytest.approx(0.5, rel=0.03)
    assert float((found.distance > 1.5).double().mean()) == pytest.approx(math.exp(-4.5), abs=0.006)


def test_mode_statistics_of_points_at_known_places():
    centers = torch.tensor([[0.0, 0.0], [10.0, 0.0]])
    x = torch.tensor([[0.0, 1.0], [0.0, -1.0], [1.0, 0.0], [10.0, 1.0]])
    found = mode_statistics(x, centers, torch.tensor([0.5, 0.5]))
    assert found.counts.tolist() == [3, 1]
    assert found.std == pytest.approx(math.sqrt(0.5))  # |x - c|² = 1 over two coordinates
    assert found.total_variation == pytest.approx(0.25)
    close(found.distance, torch.ones(4))


def test_records_are_the_start_and_every_so_many_steps():
    score, x = mixture_score(line(), VP), normal(0, 5, 1)
    times = time_grid(VP, 12)
    whole = reverse_process(score, VP, x, times, generator=seeded(0))
    some = reverse_process(score, VP, x, times, record_every=5, generator=seeded(0))
    assert whole.shape == (13, 5, 1) and some.shape == (3, 5, 1)
    close(some, whole[::5])
    close(whole[0], x)


def test_samples_have_the_shape_asked_for_and_follow_the_generator():
    score = lambda x, t: -x  # noqa: E731
    draws = [sample(score, VP, 3, (1, 4, 5), 2, generator=seeded(0)) for _ in range(2)]
    assert draws[0].shape == (3, 1, 4, 5) and not draws[0].requires_grad
    close(draws[0], draws[1])
    assert sample(score, VP, 3, 2, 2, dtype=F64).dtype == F64


def test_a_step_beyond_the_threshold_warns_and_one_below_does_not():
    score = mixture_score(grid9(), VP)
    options = {"grid": "linear", "generator": seeded(0), "dtype": F64}
    with pytest.warns(
        StabilityWarning, match=r"unstable in 40 steps: .* = 2\.\d+ at t = .*, where h = 0.025 and ε = 100"
    ):
        sample(score, VP, 1000, 2, 40, noise=100.0, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for n in (1, 40, 1000):
            for n_steps in (10, 30, 300):
                sample(score, VP, n, 2, n_steps, generator=seeded(n), dtype=F64)
        sample(score, VP, 1000, 2, 120, noise=100.0, **options)


def test_paths_that_blow_up_are_stopped_with_the_step():
    with pytest.raises(FloatingPointError, match=r"not finite .*: .* stable below 2"):
        sample(mixture_score(gaussian(1e-3), OU), OU, 100, 1, 4000, noise=1e4, grid="linear", dtype=F64)
    nan = lambda x, t: x * (math.nan if t < 0.45 else 1)  # noqa: E731
    with pytest.raises(FloatingPointError, match=r"the score is not finite in step 6 of 9, from t = 0\.4: check"):
        reverse_process(nan, VP, torch.zeros(3, 2), torch.linspace(1, 0.1, 10))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, t: reverse_process(lambda x, t: x[:1], VP, x, t), r"the score must be .* got \(1, 2\)"),
        (lambda x, t: reverse_process(lambda x, t: x.numpy(), VP, x, t), "got ndarray"),
        (lambda x, t: reverse_process(lambda x, t: x, VP, x, t.flip(0)), "t must decrease"),
        (lambda x, t: reverse_process(lambda x, t: x, VP, x, [1.0, 0.5, 0.7], noise=0.0), "t must decrease"),
        (lambda x, t: reverse_process(lambda x, t: x, VP, x, [1.0]), "two times or more"),
        (lambda x, t: reverse_process(lambda x, t: x, VP, x, 1.5 * t), "interval"),
        (lambda x, t: reverse_process(lambda x, t: x, VP, x, t, noise=-1.0), "noise must be at least 0"),
        (lambda x, t: reverse_process(lambda x, t: x, VP, x, t, noise=lambda t: t - 0.5), "noise must be at least 0"),
        (lambda x, t: reverse_process(lambda x, t: x, VP, x, t, method="rk4"), "method must be one of 'euler', 'heun'"),
        (lambda x, t: reverse_process(lambda x, t: x, LinearPath(), x, t), "singular"),
        (lambda x, t: time_grid(LinearPath(), 5), "no signal left at T = 1"),
        (lambda x, t: time_grid(VP, 5, grid="cosine"), "grid must be one of"),
        (lambda x, t: sample(lambda x, t: x, VP, 4, 2, 0), "n_steps must be at least 1"),
        (lambda x, t: sample(lambda x, t: x, VP, 4, (2, 0), 5), "dim must be at least 1"),
        (lambda x, t: sample(lambda x, t: x, VP, 4, 2, 5, t_min=2.0), "t_min must be below"),
        (lambda x, t: ode_log_likelihood(lambda x, t: x[:1], VP, x, 3), "the score must be"),
    ],
)
def test_bad_input_of_the_reverse_process(call, message, unchecked):
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(4, 2), torch.linspace(1, 0.1, 5, dtype=F64))


# --- likelihood -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [OU, VP, SCHEDULES["VE"]], ids=["OU", "VP", "VE"])
def test_the_likelihood_of_a_gaussian_is_exact_up_to_the_prior(schedule):
    """Data N(0, c²): the flow is linear, x_T = x √(v_T/v), and the prior is the only error."""
    c, t_min = 0.7, 0.01
    law, x = gaussian(c), normal(0, 6, 1)
    found = ode_log_likelihood(mixture_score(law, schedule), schedule, x, 100, t_min=t_min)
    v = [float(law.noised(schedule.alpha(t), schedule.sigma(t)).covs) for t in (t_min, schedule.T)]
    end, stretch = x[:, 0].numpy() * math.sqrt(v[1] / v[0]), 0.5 * math.log(v[1] / v[0])
    close(found, scipy.stats.norm(0, schedule.prior_std).logpdf(end) + stretch, rtol=1e-5, atol=1e-5)


def test_the_likelihood_of_the_nine_modes():
    law = grid9()
    x = law.sample(100, generator=seeded(5))
    found = ode_log_likelihood(mixture_score(law, VP), VP, x, 100, grid="linear")
    exact = law.noised(VP.alpha(1e-3), VP.sigma(1e-3)).log_prob(x)
    # p_T stands within a few a_T |m| = 0.05 of N(0, I), weighted by |x_T|; the modes cancel all but the second order
    close(found, exact, atol=0.02)


def test_probes_give_an_unbiased_likelihood():
    law, x = mixture(8), normal(1, 1, 2)
    score = mixture_score(law, OU)
    exact = ode_log_likelihood(score, OU, x, 30)
    spread = []
    for n_probes in (1, 2):
        draws = ode_log_likelihood(score, OU, x.expand(4000, 2), 30, n_probes=n_probes, generator=seeded(0))
        spread.append(float(draws.std()))
        assert float(draws.mean()) == pytest.approx(float(exact), abs=5 * spread[-1] / math.sqrt(4000))
    assert spread[1] / spread[0] == pytest.approx(2**-0.5, rel=0.15)


def test_above_sixteen_coordinates_one_probe_is_the_default():
    image, score = normal(2, 2, 1, 5, 5), lambda x, t: -x - 0.1 * x.roll(1, -1) ** 3
    found = [ode_log_likelihood(score, VP, image, 5, n_probes=k, generator=seeded(3)) for k in (None, 1, 0)]
    assert found[0].shape == (2,)
    close(found[0], found[1])
    assert not torch.allclose(found[0], found[2], rtol=1e-6)
