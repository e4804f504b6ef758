import copy
import math

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
import scipy.stats
import torch
import zuko
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from coursekit.flows import CNF, Affine, AffineCoupling, Compose, Flow1D, RealNVP, Sinh
from coursekit.ode import odeint

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")),
]
F64 = torch.float64
seeds = st.integers(0, 2**31 - 1)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def normal(seed, *shape, dtype=F64):
    return torch.randn(*shape, generator=seeded(seed), dtype=dtype)


def perturbed(flow, seed=0, scale=0.3):
    """In float64, with noise added to every parameter: networks start at zero, where much would hold by accident."""
    generator = seeded(seed)
    with torch.no_grad():
        for parameter in flow.to(F64).parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator, dtype=F64)
    return flow


def assign(parameter, value):
    with torch.no_grad():
        parameter.copy_(torch.as_tensor(value, dtype=parameter.dtype))


def close(actual, expected, rtol=1e-11, atol=1e-11):
    expected = expected.detach() if isinstance(expected, torch.Tensor) else expected
    np.testing.assert_allclose(actual.detach(), expected, rtol=rtol, atol=atol)


def standard(z):
    """Logarithm of the standard normal density."""
    return scipy.stats.norm.logpdf(z.detach().numpy()).sum(-1)


MATRIX = torch.tensor([[1.5, -0.4, 0.3], [0.2, 0.8, -0.5], [0.6, 0.1, -1.1]], dtype=F64)

# The steps are the CNFs' own: they converge, while all else is exact up to rounding
FLOWS = {
    "Flow1D": lambda n_steps: Flow1D(5),
    "Sinh": lambda n_steps: Sinh(2),
    "Affine": lambda n_steps: Affine(MATRIX, normal(0, 3)),
    "AffineCoupling": lambda n_steps: AffineCoupling(3, (8,), generator=seeded(0)),
    "AffineCoupling flipped": lambda n_steps: AffineCoupling(3, (8,), flip=True, generator=seeded(0)),
    "RealNVP 2": lambda n_steps: RealNVP(2, 4, (6,), generator=seeded(0)),
    "RealNVP 5": lambda n_steps: RealNVP(5, 3, (4, 4), generator=seeded(0)),
    "CNF 1": lambda n_steps: CNF(1, (6,), n_steps=n_steps, generator=seeded(0)),
    "CNF 2": lambda n_steps: CNF(2, (6,), n_steps=n_steps, generator=seeded(0)),
    "CNF 3, deep": lambda n_steps: CNF(3, (5, 4), n_steps=n_steps, generator=seeded(0)),
    "CNF linear": lambda n_steps: CNF(3, (), n_steps=n_steps, generator=seeded(0)),
    "Compose 1": lambda n_steps: Compose(Flow1D(3), Sinh(1), Flow1D(2)),
    "Compose 2": lambda n_steps: Compose(
        Affine(0.5 * MATRIX[:2, :2]),
        AffineCoupling(2, (4,), flip=True, generator=seeded(0)),
        Sinh(2),
        CNF(2, (4,), n_steps=n_steps, generator=seeded(1)),
    ),
}
every_flow = pytest.mark.parametrize("name", FLOWS)


def make(name, n_steps=32):
    return perturbed(FLOWS[name](n_steps))


def has_steps(flow):
    return any(isinstance(module, CNF) for module in flow.modules())


def parameters_removed(flow):
    """The same map as a function of points whose graph has no parameters."""
    return copy.deepcopy(flow).requires_grad_(False)


def quadrature(dim, reach=12.0, step=0.1):
    """Points and weights of ∫ f(x) dx = ∫ f(sinh u) Π cosh u_i du: the sum over a grid of u, which for a smooth f that
    vanishes at the ends converges faster than any power of the step, for tails as heavy as those of sinh z too."""
    u = torch.arange(-reach, reach + step / 2, step, dtype=F64)
    axes = torch.meshgrid(*[u] * dim, indexing="ij")
    grid = torch.stack(axes, dim=-1).reshape(-1, dim)
    return grid.sinh(), step**dim * grid.cosh().prod(-1)


class TestEveryFlow:
    @every_flow
    def test_round_trips(self, name):
        flow = make(name)
        points = 1.5 * normal(2, 20, flow.dim)
        # forth and back a step of a method of order p = 4 leaves O(hᵖ⁺²), as the leading errors cancel: 32 h⁶ = 3e-8,
        # and h⁴ is the difference of a log det that is integrated on two paths
        points_tol, det_tol = (1e-7, 1e-6) if has_steps(flow) else (1e-11, 1e-11)
        for there, back in ((flow.forward, flow.inverse), (flow.inverse, flow.forward)):
            image, log_det = there(points)
            again, log_det_back = back(image)
            assert (image - points).abs().max() > 0.01
            close(again, points, points_tol, points_tol)
            close(log_det_back, -log_det, det_tol, det_tol)

    @every_flow
    @pytest.mark.parametrize("direction", ["forward", "inverse"])
    def test_log_det_is_that_of_the_jacobian(self, name, direction):
        flow = make(name)
        mapping = getattr(parameters_removed(flow), direction)
        points = normal(3, 2, flow.dim)
        exact = [torch.linalg.slogdet(torch.func.jacrev(lambda p: mapping(p)[0])(point))[1] for point in points]
        tol = 1e-6 if has_steps(flow) else 1e-11
        close(getattr(flow, direction)(points)[1], torch.stack(exact), tol, tol)

    @every_flow
    def test_log_prob_is_the_change_of_variables(self, name):
        flow = make(name)
        x = normal(4, 6, flow.dim)
        z, log_det = flow.inverse(x)
        close(flow.log_prob(x), standard(z) + log_det.detach().numpy())

    @pytest.mark.parametrize("name", [name for name in FLOWS if FLOWS[name](1).dim < 3])
    def test_mass_is_one(self, name):
        flow = parameters_removed(make(name, 16))
        x, weights = quadrature(flow.dim)
        assert (weights * flow.log_prob(x).exp()).sum().item() == pytest.approx(1, abs=1e-6)

    @every_flow
    @pytest.mark.parametrize("method", ["forward", "inverse", "log_prob"])
    def test_gradients(self, name, method):
        # gradcheck moves the parameters in place, so they need not be arguments; the fast mode compares along one
        # random direction of each
        flow = make(name, 2)
        x = normal(5, 2, flow.dim).requires_grad_()
        assert torch.autograd.gradcheck(lambda x, *_: getattr(flow, method)(x), (x, *flow.parameters()), fast_mode=True)

    @every_flow
    @pytest.mark.parametrize("device", DEVICES)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_keeps_dtype_and_device(self, name, device, dtype):
        flow = make(name, 8)
        x = normal(6, 5, flow.dim)
        expected = [*flow.forward(x), *flow.inverse(x), flow.log_prob(x)]
        flow, x = flow.to(device, dtype), x.to(device, dtype)
        results = [*flow.forward(x), *flow.inverse(x), flow.log_prob(x)]
        tol = 1e-4 if dtype == torch.float32 else 1e-12
        for ours, exact in zip(results, expected, strict=True):
            assert ours.dtype == dtype and ours.device.type == device
            close(ours.detach().cpu().double(), exact, tol, tol)
        sample = flow.sample(4, generator=seeded(0))
        # Sinh has no parameter that could tell: torch's defaults
        expected = (torch.float32, "cpu") if name == "Sinh" else (dtype, device)
        assert (sample.dtype, sample.device.type) == expected

    @every_flow
    @pytest.mark.parametrize("shape", [(), (1,), (6,), (2, 3), (3, 1, 2), (0,), (2, 0)])
    def test_leading_axes(self, name, shape):
        flow = make(name, 4)
        x = normal(7, *shape, flow.dim)
        flat = x.reshape(-1, flow.dim)
        for method in (flow.forward, flow.inverse):
            points, log_det = method(x)
            assert points.shape == (*shape, flow.dim) and log_det.shape == shape
            singly = [method(point) for point in flat]
            close(points.reshape(flat.shape), torch.stack([p for p, _ in singly]) if singly else flat, 1e-12, 1e-12)
            close(log_det.reshape(-1), torch.stack([d for _, d in singly]) if singly else flat[:, 0], 1e-12, 1e-12)
        assert flow.log_prob(x).shape == shape

    @every_flow
    def test_sample(self, name):
        flow = make(name, 4)
        state = torch.get_rng_state()
        x = flow.sample(7, generator=seeded(0))
        assert torch.equal(state, torch.get_rng_state())
        assert x.shape == (7, flow.dim) and not x.requires_grad
        assert torch.equal(x, flow.sample(7, generator=seeded(0)))
        assert not torch.equal(x, flow.sample(7, generator=seeded(1)))
        torch.manual_seed(5)
        first = flow.sample(7)
        torch.manual_seed(5)
        assert torch.equal(first, flow.sample(7)) and not torch.equal(first, flow.sample(7))

    @pytest.mark.parametrize("name", ["Flow1D", "Compose 1", "CNF 1"])
    def test_sample_has_the_density_on_the_line(self, name):
        flow = parameters_removed(make(name, 16))
        x, weights = quadrature(1, step=0.01)
        mass = (weights * flow.log_prob(x).exp()).numpy()
        n = 50_000
        sample = np.sort(flow.sample(n, generator=seeded(1))[:, 0].numpy())
        # the trapezoidal rule up to each point; linear interpolation is wrong by 0.01²/8 max |F''|
        cdf = np.interp(np.arcsinh(sample), np.arcsinh(x[:, 0].numpy()), np.cumsum(mass) - mass / 2)
        distance = np.abs(cdf - (np.arange(n) + 0.5) / n).max()
        # Dvoretzky, Kiefer, Wolfowitz: P(√n D > c) ≤ 2exp(-2c²) = 1e-6
        assert distance < math.sqrt(math.log(2e6) / (2 * n)) + 1e-4

    @pytest.mark.parametrize("name", ["RealNVP 2", "CNF 2", "Compose 2"])
    def test_sample_has_the_moments_of_the_density(self, name):
        flow = parameters_removed(make(name, 8))
        x, weights = quadrature(2)
        mass = weights * flow.log_prob(x).exp()
        n = 50_000
        sample = flow.sample(n, generator=seeded(2))
        for statistic in (
            lambda x: x[:, 0].tanh(),
            lambda x: x[:, 1].tanh(),
            lambda x: x[:, 0].tanh() * x[:, 1].tanh(),
            lambda x: (x[:, 0] - 2 * x[:, 1]).cos(),
        ):
            mean = (mass * statistic(x)).sum()
            variance = (mass * statistic(x) ** 2).sum() - mean**2
            assert abs(statistic(sample).mean() - mean) < 5 * (variance / n).sqrt() + 1e-5

    @every_flow
    def test_malformed_points(self, name, unchecked):
        flow = make(name, 2)
        for method in (flow.forward, flow.inverse, flow.log_prob):
            for points in (
                torch.zeros(4, flow.dim, dtype=torch.int64),
                torch.zeros(4, flow.dim, dtype=torch.bool),
                torch.zeros(4, flow.dim, dtype=torch.complex128),
                torch.zeros(4, flow.dim + 1, dtype=F64),
                torch.zeros(flow.dim, 0, dtype=F64),
                torch.zeros((), dtype=F64),
            ):
                with pytest.raises(ValueError, match=f"points must be floating with a last axis of {flow.dim}, got"):
                    method(points)
        for n in (0, -1, 2.5, True, None):
            with pytest.raises(ValueError, match="n must be"):
                flow.sample(n)

    @every_flow
    def test_nan(self, name):
        flow = make(name, 2)
        x = normal(8, 3, flow.dim)
        x[1, 0] = math.nan
        for method in (flow.forward, flow.inverse):
            if has_steps(flow):
                # told at once, as by every solver of `ode`
                with pytest.raises(ValueError, match="finite"):
                    method(x)
                continue
            points, log_det = method(x)
            assert points[1, 0].isnan() and points[[0, 2]].isfinite().all() and log_det[[0, 2]].isfinite().all()
            assert flow.log_prob(x).isnan().tolist() == [False, True, False]

    @every_flow
    def test_state_travels(self, name):
        flow = make(name, 2)
        x = normal(9, 3, flow.dim)
        other = FLOWS[name](2).to(F64)
        other.load_state_dict(flow.state_dict())
        assert torch.equal(flow.log_prob(x), other.log_prob(x))
        assert torch.equal(flow.log_prob(x), copy.deepcopy(flow).log_prob(x))

    @pytest.mark.parametrize(
        "build",
        [
            lambda: AffineCoupling(2, (8,)),
            lambda: AffineCoupling(5, (8, 8), flip=True),
            lambda: AffineCoupling(3, ()),
            lambda: RealNVP(2, 3, (8,)),
            lambda: RealNVP(7, 2, (8,)),
            lambda: CNF(1, (8,)),
            lambda: CNF(3, (8, 8), n_steps=3),
            lambda: CNF(2, ()),
            lambda: CNF(20, (8,)),
        ],
    )
    def test_new_networks_are_the_identity(self, build):
        flow = build()
        x = normal(10, 5, flow.dim, dtype=torch.float32)
        for method in (flow.forward, flow.inverse):
            points, log_det = method(x)
            assert torch.equal(points, x) and (log_det == 0).all()
        close(flow.log_prob(x), standard(x), 1e-5, 1e-5)
        # and yet something moves with the first step of training
        flow.log_prob(2 * x).sum().backward()
        assert any((parameter.grad != 0).any() for parameter in flow.parameters())

    @pytest.mark.parametrize(
        "build",
        [
            lambda generator: AffineCoupling(3, (8,), generator=generator),
            lambda generator: RealNVP(3, 2, (8,), generator=generator),
            lambda generator: CNF(3, (8,), generator=generator),
        ],
    )
    def test_weights_follow_from_the_generator(self, build):
        states = []
        for state, seed in ((0, 1), (1, 1), (0, 2)):
            torch.manual_seed(state)
            states.append(build(seeded(seed)).state_dict())
        first, again, other = states
        assert all(torch.equal(first[key], again[key]) for key in first)
        assert any(not torch.equal(first[key], other[key]) for key in first)


class TestCompose:
    def test_order(self):
        shift, double = Affine(torch.eye(1), torch.ones(1)), Affine(2 * torch.eye(1))
        z = torch.tensor([[3.0]])
        # first the shift: 2(3 + 1), and back 3/2 - 1
        assert Compose(shift, double).forward(z)[0].item() == 8
        assert Compose(shift, double).inverse(z)[0].item() == 0.5
        assert Compose(double, shift).forward(z)[0].item() == 7

    @given(seeds)
    @settings(max_examples=10)
    def test_is_associative_and_adds(self, seed):
        a, b, c = (perturbed(make(name, 4), seed) for name in ("RealNVP 2", "CNF 2", "Sinh"))
        z = normal(seed, 5, 2)
        nested = [Compose(a, b, c), Compose(Compose(a, b), c), Compose(a, Compose(b, c))]
        y, first = a.forward(z)
        w, second = b.forward(y)
        x, third = c.forward(w)
        for flow in nested:
            for ours, expected in zip(flow.forward(z), (x, first + second + third), strict=True):
                close(ours, expected, 1e-13, 1e-13)
            for ours, expected in zip(flow.inverse(x), nested[0].inverse(x), strict=True):
                close(ours, expected, 1e-13, 1e-13)

    def test_of_one_is_that_one(self):
        flow = make("Affine")
        z = normal(0, 4, 3)
        assert torch.equal(Compose(flow).forward(z)[0], flow.forward(z)[0])
        assert torch.equal(Compose(flow).log_prob(z), flow.log_prob(z))

    def test_holds_the_layers(self):
        layers = [Flow1D(2), Sinh(1), Flow1D(3)]
        flow = Compose(*layers)
        assert list(flow.layers) == layers and flow.dim == 1
        assert sum(p.numel() for p in flow.parameters()) == (2 + 3 * 2) + (2 + 3 * 3)
        # one layer twice is a flow too, with its parameters once
        twice = Compose(layers[0], layers[0])
        assert sum(p.numel() for p in twice.parameters()) == 2 + 3 * 2

    def test_rejects(self):
        with pytest.raises(ValueError, match=r"layers must have one dimension in common, got \[\]"):
            Compose()
        with pytest.raises(ValueError, match=r"layers must have one dimension in common, got \[1, 2\]"):
            Compose(Flow1D(2), Sinh(2))


class TestAffine:
    @given(seeds, st.integers(1, 6))
    @settings(max_examples=20)
    def test_is_the_gaussian(self, seed, d):
        A, b = normal(seed, d, d) + 2 * torch.eye(d, dtype=F64), normal(seed + 1, d)
        x = 2 * normal(seed + 2, 2, 5, d)
        exact = torch.distributions.MultivariateNormal(b, A @ A.T).log_prob(x)
        tol = 1e-13 * torch.linalg.cond(A).item() ** 2
        close(Affine(A, b).log_prob(x), exact, tol, tol)
        close(Affine(A).log_prob(x - b), exact, tol, tol)
        close(Affine(A, b).log_prob(x[0, 0]), exact[0, 0], tol, tol)
        z, log_det = Affine(A, b).forward(x)
        close(z, np.einsum("ij,...j->...i", A, x) + b.numpy(), 1e-12, 1e-12)
        close(log_det, np.full((2, 5), np.linalg.slogdet(A)[1]), 1e-12, 1e-12)

    def test_reflections_are_invertible(self):
        # |det|: a negative determinant has a logarithm too
        assert Affine(torch.diag(torch.tensor([-2.0, 3.0]))).forward(torch.zeros(2))[1].item() == pytest.approx(
            math.log(6)
        )

    def test_copies_its_start(self):
        A, b = torch.eye(2).requires_grad_(), torch.zeros(2)
        flow = Affine(A, b)
        flow.log_prob(torch.ones(3, 2)).sum().backward()
        assert A.grad is None and flow.A.grad is not None and flow.b.grad is not None
        with torch.no_grad():
            flow.A *= 2
            flow.b += 1
        assert torch.equal(A, torch.eye(2)) and torch.equal(b, torch.zeros(2))

    def test_likelihood_is_largest_at_mean_and_covariance(self):
        x = normal(0, 200, 2) @ torch.tensor([[1.0, 0.7], [0.0, 0.5]], dtype=F64) + 3
        flow = Affine(torch.eye(2, dtype=F64))
        loss = descend(flow, lambda: -flow.log_prob(x).mean())
        covariance = np.cov(x.T, bias=True)
        assert loss == pytest.approx(np.linalg.slogdet(2 * math.pi * math.e * covariance)[1] / 2, abs=1e-10)
        close(flow.b, x.mean(0), 1e-5, 1e-5)
        close(flow.A @ flow.A.T, covariance, 1e-5, 1e-5)

    def test_learns_from_an_energy(self):
        # U = ½(x - m)ᵀP(x - m), and z with mean 0 and covariance I: the mean of U - log det is least at b = m and
        # AAᵀ = P⁻¹, where it is d/2 + ½ ln det P
        z = normal(1, 100, 2)
        z = torch.linalg.solve(torch.linalg.cholesky(torch.cov(z.T, correction=0)), (z - z.mean(0)).T).T
        P, m = torch.tensor([[2.0, 0.6], [0.6, 0.5]], dtype=F64), torch.tensor([1.0, -2.0], dtype=F64)
        flow = Affine(torch.eye(2, dtype=F64))

        def loss():
            x, log_det = flow.forward(z)
            return (0.5 * ((x - m) @ P * (x - m)).sum(-1) - log_det).mean()

        assert descend(flow, loss) == pytest.approx(1 + 0.5 * math.log(2 * 0.5 - 0.36), abs=1e-10)
        close(flow.b, m, 1e-5, 1e-5)
        close(flow.A @ flow.A.T, np.linalg.inv(P), 1e-5, 1e-5)

    def test_rejects(self, unchecked):
        for A in (torch.ones(3), torch.ones(2, 3), torch.ones(2, 2, 2)):
            with pytest.raises(ValueError, match="A must be a square matrix"):
                Affine(A)
        for A in (torch.ones(2, 2), torch.zeros(1, 1), torch.full((1, 1), math.nan), torch.full((1, 1), math.inf)):
            with pytest.raises(ValueError, match="A must be invertible"):
                Affine(A)
        for b in (torch.ones(3), torch.ones(1), torch.ones(1, 2), torch.ones(2, 1), torch.tensor(0.0)):
            with pytest.raises(ValueError, match=r"b must have shape \(2,\), got"):
                Affine(torch.eye(2), b)


def descend(flow, loss):
    """The least loss, by L-BFGS."""
    optimizer = torch.optim.LBFGS(
        flow.parameters(), max_iter=150, tolerance_grad=1e-10, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)
    return loss().item()


class TestSinh:
    def test_density(self):
        # Johnson's law S_U with γ = 0, δ = 1
        x = torch.linspace(-50, 50, 1001, dtype=F64).unsqueeze(-1)
        close(Sinh(1).log_prob(x), scipy.stats.johnsonsu(0, 1).logpdf(x[:, 0]), 1e-12, 1e-12)
        pairs = normal(0, 20, 2)
        close(Sinh(2).log_prob(pairs), scipy.stats.johnsonsu(0, 1).logpdf(pairs).sum(-1), 1e-12, 1e-12)

    @pytest.mark.parametrize("n", [1, 9])
    @pytest.mark.parametrize(("dtype", "z", "x"), [(F64, 700.0, 1e300), (torch.float32, 85.0, 1e30)])
    def test_does_not_overflow(self, n, dtype, z, x):
        # cosh z = e^|z|/2 and asinh x = ln 2|x| to rounding; nine points meet the vectorised functions
        for sign in (-1, 1):
            image, log_det = Sinh(1).forward(torch.full((n, 1), sign * z, dtype=dtype))
            np.testing.assert_allclose(log_det, z - math.log(2), rtol=1e-6)
            np.testing.assert_allclose(image, sign * math.exp(z - math.log(2)), rtol=1e-4)
            points = torch.full((n, 1), sign * x, dtype=dtype)
            latent, log_det = Sinh(1).inverse(points)
            np.testing.assert_allclose(latent, sign * math.log(2 * x), rtol=1e-6)
            np.testing.assert_allclose(log_det, -math.log(x), rtol=1e-6)
            exact = -(math.log(2 * x) ** 2) / 2 - math.log(x) - math.log(2 * math.pi) / 2
            np.testing.assert_allclose(Sinh(1).log_prob(points), exact, rtol=1e-6)

    def test_log_cosh(self):
        # finite where x is not
        close(Sinh(1).forward(torch.tensor([[-1e3], [1e3]], dtype=F64))[1], [1e3 - math.log(2)] * 2, 1e-15)
        z = torch.linspace(-20, 20, 401, dtype=F64).unsqueeze(-1)
        close(Sinh(1).forward(z)[1], np.log(np.cosh(z[:, 0].numpy())), 1e-13, 1e-15)
        assert Sinh(3).forward(torch.zeros(3))[1].item() == pytest.approx(0, abs=3e-7)

    def test_tails_grow_heavier(self):
        # -ln p grows as ½ ln²x: slower than any |x|ᵃ, faster than any multiple of ln x
        x = torch.tensor([[1e10], [1e20], [1e40]], dtype=F64)
        energy = -Sinh(1).log_prob(x)
        np.testing.assert_allclose(energy / (x[:, 0].log() ** 2 / 2), 1, atol=0.2)


def unit_values(x, flow):
    """e + sx + Σ a tanh(b(x - c)) and its derivative in numpy, with 1 - tanh² in a form that does not cancel."""
    s, a, b = (functional.softplus(p.detach().double()).numpy() for p in (flow.slope, flow.height, flow.steepness))
    y = b * (np.asarray(x)[..., None] - flow.center.detach().double().numpy())
    decay, s = np.exp(-2 * np.abs(y)), s.item()
    value = flow.offset.item() + s * x + (a * np.tanh(y)).sum(-1)
    return value, s + (a * b * 4 * decay / (1 + decay) ** 2).sum(-1)


def raw(value):
    """Of which torch's softplus is the value; above 20 that is the value itself."""
    return np.where(np.asarray(value) > 20, value, np.log(np.expm1(np.minimum(value, 20))))


def flow_1d(offset, s, a, b, c, dtype=F64):
    """z = offset + s x + Σ a tanh(b(x - c))."""
    flow = Flow1D(len(a)).to(dtype)
    for parameter, value in (
        (flow.offset, [offset]),
        (flow.slope, raw([s])),
        (flow.height, raw(a)),
        (flow.steepness, raw(b)),
        (flow.center, c),
    ):
        assign(parameter, value)
    return flow


class CountTanh(TorchFunctionMode):
    """Counts calls of torch.tanh, one for each evaluation of the map of Flow1D."""

    calls = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.calls += func is torch.tanh
        return func(*args, **(kwargs or {}))


class TestFlow1D:
    @pytest.mark.parametrize("n_units", [1, 2, 7])
    def test_start(self, n_units):
        # g = (x + mean tanh(x - c))/2: odd, with a slope between ½ and 1; the c in the middles of parts of [-2, 2]
        flow = Flow1D(n_units).to(F64)
        x = np.linspace(-4, 4, 101)
        centers = -2 + 4 * (np.arange(n_units) + 0.5) / n_units
        expected = (x + np.tanh(x[:, None] - centers).mean(-1)) / 2
        z, log_det = flow.inverse(torch.as_tensor(x[:, None]))
        close(z[:, 0], expected, 1e-6, 1e-6)
        assert (log_det.exp() > 0.5).all() and (log_det <= 1e-6).all()
        assert sum(p.numel() for p in flow.parameters()) == 2 + 3 * n_units
        # it makes no use of chance
        assert all(
            torch.equal(p, q.double()) for p, q in zip(flow.parameters(), Flow1D(n_units).parameters(), strict=True)
        )

    @given(seeds, st.integers(1, 6))
    @settings(max_examples=20)
    def test_formula(self, seed, n_units):
        flow = perturbed(Flow1D(n_units), seed, scale=1.5)
        x = np.linspace(-6, 6, 61)
        value, slope = unit_values(x, flow)
        z, log_det = flow.inverse(torch.as_tensor(x[:, None]))
        close(z[:, 0], value, 1e-12, 1e-12)
        close(log_det, np.log(slope), 1e-12, 1e-12)
        assert (np.diff(z[:, 0].detach()) > 0).all()

    @given(seeds)
    @settings(max_examples=10)
    def test_forward_is_the_root(self, seed):
        flow = perturbed(Flow1D(4), seed, scale=1.5)
        for z in (-3.0, -0.2, 0.0, 1.7):
            exact = scipy.optimize.brentq(lambda x: unit_values(np.array(x), flow)[0] - z, -1e4, 1e4, xtol=1e-13)  # noqa: B023
            x, log_det = flow.forward(torch.tensor([z], dtype=F64))
            assert x.item() == pytest.approx(exact, rel=1e-11, abs=1e-11)
            assert log_det.item() == pytest.approx(-math.log(unit_values(np.array(exact), flow)[1]), abs=1e-9)

    def test_tails(self):
        flow = flow_1d(0.7, 0.4, [2.0, 0.5], [1.0, 3.0], [-1.0, 2.0])
        x = torch.tensor([[-1e3], [1e3]], dtype=F64)
        z, log_det = flow.inverse(x)
        # all units are saturated: e + sx ± Σa
        close(z[:, 0], [0.7 - 400 - 2.5, 0.7 + 400 + 2.5], 1e-12)
        close(log_det, [math.log(0.4)] * 2, 1e-12)
        # a normal law of standard deviation 1/s: ln p = -½s²x² + …
        far = torch.tensor([[1e8]], dtype=F64)
        assert -2 * flow.log_prob(far).item() / 1e16 == pytest.approx(0.4**2, rel=1e-6)

    @given(
        st.floats(-14, 3),
        st.lists(
            st.tuples(st.floats(-6, 2), st.floats(-2, 4), st.floats(-5, 5)),
            min_size=1,
            max_size=5,
        ),
        st.floats(-5, 5),
        st.sampled_from([torch.float32, torch.float64]),
    )
    @settings(max_examples=40)
    def test_inverts_nasty_maps(self, log_s, units, offset, dtype):
        # slopes down to 1e-6, units as steep as 1e4 and as high as 100, points up to ±1000
        a, b, c = np.transpose(units)
        flow = flow_1d(offset, math.exp(log_s), 10.0**a, 10.0**b, c, dtype)
        z = torch.cat([torch.linspace(-12, 12, 25), torch.tensor([-1e3, -60.0, 60.0, 1e3])])
        z = z.sort()[0].to(dtype).unsqueeze(-1)
        x, log_det = flow.forward(z)
        assert x.isfinite().all() and not log_det.isnan().any()
        assert (x.diff(dim=0) >= 0).all()
        value, slope = unit_values(x[:, 0].detach().double().numpy(), flow)
        # x is known to a rounding error, which the slope magnifies; so are the terms of the sum
        size = abs(offset) + (math.exp(log_s) + slope) * (1 + x[:, 0].detach().abs().numpy()) + (10.0**a).sum()
        assert (np.abs(value - z[:, 0].numpy()) <= 16 * torch.finfo(dtype).eps * size).all()

    def test_nearly_flat_and_steep(self):
        # z = 1e-6x + tanh(1e4(x - 1)): z = ±½ lies within the step, at 1 ± atanh(½)/1e4, and z = ±2 at ±1e6
        flow = flow_1d(0.0, 1e-6, [1.0], [1e4], [1.0])
        z = torch.tensor([[-2.0], [-0.5], [0.5], [2.0]], dtype=F64)
        x = flow.forward(z)[0][:, 0].detach().numpy()
        np.testing.assert_allclose(x[[0, 3]], [-1e6, 1e6], rtol=1e-9)
        # (½ - 1e-6x = tanh …: 1e-6 moves the points by 1e-10)
        np.testing.assert_allclose(x[1:3] - 1, [-math.atanh(0.5) / 1e4, math.atanh(0.5) / 1e4], atol=2e-10)

    def test_flat_parts_keep_their_slope(self):
        # 1 - tanh² ≤ 4e^{-2|y|} is nothing beside s = 1e-6 where |y| > 50, though it is multiplied by ab = 1e6
        flow = flow_1d(0.0, 1e-6, [1e2], [1e4], [0.0])
        close(flow.inverse(torch.tensor([[0.005], [1.0], [-1.0]], dtype=F64))[1], [math.log(1e-6)] * 3, 1e-9)

    def test_newton_is_fast(self):
        # bisection from a bracket of length 4 halves 50 times for 2⁻⁵² · 4
        flow, z = Flow1D(8).to(F64), normal(0, 1000, 1)
        with CountTanh() as count:
            flow.forward(z)
        assert 3 <= count.calls <= 15

    def test_derivatives_are_those_of_the_inverse_function(self):
        flow = perturbed(Flow1D(3))
        z = normal(0, 4, 1).requires_grad_()
        x, log_det = flow.forward(z)
        (slope,) = torch.autograd.grad(x.sum(), z, retain_graph=True)
        close(slope[:, 0].log(), log_det, 1e-10, 1e-10)
        # with z = e + … fixed, raising e moves x by -1/g'
        (shift,) = torch.autograd.grad(x.sum(), flow.offset)
        close(shift, -slope.sum().reshape(1), 1e-10)

    def test_second_derivative_of_log_prob(self):
        flow = perturbed(Flow1D(3))
        x = normal(0, 3, 1).requires_grad_()
        assert torch.autograd.gradgradcheck(lambda x, *_: flow.log_prob(x), (x, *flow.parameters()))

    @pytest.mark.parametrize("n_units", [4, 8])
    def test_learns_the_laplace_law(self, n_units):
        rng = np.random.default_rng(0)
        data = torch.as_tensor(rng.laplace(size=(10_000, 1)))
        flow = Flow1D(n_units).to(F64)
        descend(flow, lambda: -flow.log_prob(data).mean())
        # ∫ p(½g² - ln g') ≥ H - ½ln 2π = 1 + ln 2 - ½ln 2π for every flow, and the excess is KL(p ‖ flow)
        x = torch.linspace(-40, 40, 80_001, dtype=F64).unsqueeze(-1)
        with torch.no_grad():
            g, log_slope = flow.inverse(x)
        loss = (0.0005 * (-x[:, 0].abs()).exp() * (g[:, 0] ** 2 / 2 - log_slope)).sum().item()
        floor = 1 + math.log(2) - math.log(2 * math.pi) / 2
        assert floor == pytest.approx(0.774209, abs=5e-7)
        assert 0 < loss - floor < 0.005

    @pytest.mark.parametrize("n_units", [0, -1, 2.0, True, "3"])
    def test_rejects(self, n_units, unchecked):
        with pytest.raises(ValueError, match="n_units must be"):
            Flow1D(n_units)


def linear_coupling(seed, dim, flip):
    """A coupling with hidden=() whose scales do not depend on u, and the triangular matrix and shift that it is."""
    flow = perturbed(AffineCoupling(dim, (), flip=flip), seed)
    n_kept = dim - dim // 2 if flip else dim // 2
    n_other = dim - n_kept
    assign(flow.net[0].weight[:n_other], torch.zeros(n_other, n_kept))
    raw_scale, shift = flow.net[0].bias.detach().chunk(2)
    kept, other = (
        (slice(dim // 2, None), slice(None, dim // 2)) if flip else (slice(None, dim // 2), slice(dim // 2, None))
    )
    A, b = torch.eye(dim, dtype=F64), torch.zeros(dim, dtype=F64)
    A[other, other] = torch.diag((2 * torch.tanh(raw_scale / 2)).exp())
    A[other, kept], b[other] = flow.net[0].weight.detach()[n_other:], shift
    return flow, A, b


class TestAffineCoupling:
    @pytest.mark.parametrize("dim", [2, 3, 4, 5])
    @pytest.mark.parametrize("flip", [False, True])
    def test_keeps_one_half_bitwise(self, dim, flip):
        flow = perturbed(AffineCoupling(dim, (8,), flip=flip, generator=seeded(0)))
        x = normal(0, 6, dim)
        first, last = slice(None, dim // 2), slice(dim // 2, None)
        kept, other = (last, first) if flip else (first, last)
        for method in (flow.forward, flow.inverse):
            y = method(x)[0]
            assert torch.equal(y[:, kept], x[:, kept]) and (y[:, other] != x[:, other]).all()
            # the change of one coordinate of `other` is affine in it, and of no other coordinate of `other`
            moved = x.clone()
            moved[:, other.start or 0] += 1
            difference = method(moved)[0] - y
            assert (difference != 0).sum(-1).eq(1).all()
            moved[:, other.start or 0] += 1
            close(method(moved)[0] - y, 2 * difference)

    @pytest.mark.parametrize("flip", [False, True])
    @pytest.mark.parametrize("dim", [2, 3, 5])
    def test_constant_scale_and_linear_shift(self, dim, flip):
        # a triangular affine map
        flow, A, b = linear_coupling(0, dim, flip)
        z = normal(1, 4, dim)
        x, log_det = flow.forward(z)
        close(x, z @ A.T + b, 1e-13, 1e-13)
        close(log_det, [torch.linalg.slogdet(A)[1]] * 4, 1e-13, 1e-13)
        close(flow.log_prob(x), torch.distributions.MultivariateNormal(b, A @ A.T).log_prob(x), 1e-11, 1e-11)

    def test_banana(self):
        # x₁ = z₁, x₂ = z₂/2 + z₁². The units tanh(c ± δu) with tanh c = 1/√3 have f'' = -4/(3√3), f''' = 0 and
        # f'''' = -4f'', so (tanh(c + δu) + tanh(c - δu) - 2tanh c)/(δ²f'') = u² - δ²u⁴/3 + …
        c, delta = math.atanh(3**-0.5), 1e-3
        factor = 1 / (delta**2 * -4 / (3 * math.sqrt(3)))
        flow = AffineCoupling(2, (2,)).to(F64)
        assign(flow.net[0].weight, [[delta], [-delta]])
        assign(flow.net[0].bias, [c, c])
        assign(flow.net[2].weight, [[0, 0], [factor, factor]])
        assign(flow.net[2].bias, [2 * math.atanh(math.log(0.5) / 2), -2 * factor * 3**-0.5])
        z = normal(0, 50, 2).clamp(-2, 2)
        x, log_det = flow.forward(z)
        close(x, torch.stack([z[:, 0], z[:, 1] / 2 + z[:, 0] ** 2], dim=-1), atol=delta**2 * 16 / 3 + 1e-8)
        close(log_det, [-math.log(2)] * 50, 1e-12)
        exact = scipy.stats.norm.logpdf(x[:, 0].detach()) + scipy.stats.norm.logpdf(
            x[:, 1].detach(), x[:, 0].detach() ** 2, 0.5
        )
        # d ln p = |z₂| · 2 d(shift)
        close(flow.log_prob(x), exact, atol=2 * 2 * delta**2 * 16 / 3 + 1e-7)

    @pytest.mark.parametrize("bound", [0.1, 2.0, 5])
    def test_log_scale_is_bounded_smoothly(self, bound):
        flow = AffineCoupling(3, (), max_log_scale=bound).to(F64)
        weight, bias = flow.net[0].weight, flow.net[0].bias
        assert weight.shape == (4, 1)
        for size, limit in ((1e-4, 1e-4), (1e6, bound)):
            assign(bias, [size, -size, 0, 0])
            x, log_det = flow.forward(torch.ones(3, dtype=F64))
            close(x.log(), [0, limit, -limit], rtol=1e-6, atol=1e-12)
            assert abs(log_det.item()) < 1e-12
            assign(bias, [size, size, 0, 0])
            close(flow.forward(torch.ones(3, dtype=F64))[1], 2 * limit, rtol=1e-6)
        # the default
        free = AffineCoupling(2, ()).to(F64)
        assign(free.net[0].bias, [1e6, 0])
        assert free.forward(torch.ones(2, dtype=F64))[1].item() == pytest.approx(2)
        # smooth: max tanh(s/max)
        assign(free.net[0].bias, [1.0, 0])
        assert free.forward(torch.ones(2, dtype=F64))[1].item() == pytest.approx(2 * math.tanh(0.5))

    def test_network(self):
        flow, flipped = AffineCoupling(5, (7, 6)), AffineCoupling(5, (7, 6), flip=True)
        # 2 of 5 coordinates stay, or 3
        shapes = lambda flow: [tuple(p.shape) for p in flow.parameters() if p.ndim == 2]  # noqa: E731
        assert shapes(flow) == [(7, 2), (6, 7), (6, 6)] and shapes(flipped) == [(7, 3), (6, 7), (4, 6)]

    def test_rejects(self, unchecked):
        for dim in (1, 0, 2.0):
            with pytest.raises(ValueError, match="dim must be"):
                AffineCoupling(dim, (4,))
        for bound in (0, -1.0, math.nan, math.inf, "a"):
            with pytest.raises(ValueError, match="max_log_scale must be"):
                AffineCoupling(2, (4,), max_log_scale=bound)
        with pytest.raises(ValueError, match="sizes"):
            AffineCoupling(2, (0,))


def with_zuko(flow, bound=2.0):
    """The flow as one of zuko: its couplings, networks, composition and base, with the weights of ours.

    zuko maps data to latent points, v ↦ (v - t)e^{-s}, and a network gives (t, s) coordinate by coordinate.
    """

    def univariate(shift, log_scale):
        log_scale = bound * torch.tanh(log_scale / bound)
        return torch.distributions.AffineTransform(-shift * (-log_scale).exp(), (-log_scale).exp())

    transforms = []
    for layer in reversed(flow.layers):
        kept = torch.arange(flow.dim) < flow.dim // 2
        sizes = [linear.out_features for linear in layer.net if isinstance(linear, torch.nn.Linear)][:-1]
        coupling = zuko.flows.GeneralCouplingTransform(
            flow.dim,
            mask=~kept if layer.flip else kept,
            univariate=univariate,
            hidden_features=sizes,
            activation=torch.nn.Tanh,
        ).to(F64)
        ours = [linear for linear in layer.net if isinstance(linear, torch.nn.Linear)]
        theirs = [linear for linear in coupling.hyper if hasattr(linear, "weight")]
        for mine, their in zip(ours, theirs, strict=True):
            assign(their.weight, mine.weight)
            assign(their.bias, mine.bias)
        n = ours[-1].out_features // 2
        order = torch.arange(2 * n).reshape(2, n).flip(0).T.reshape(-1)
        assign(theirs[-1].weight, ours[-1].weight[order])
        assign(theirs[-1].bias, ours[-1].bias[order])
        transforms.append(coupling)
    base = zuko.lazy.UnconditionalDistribution(
        zuko.distributions.DiagNormal, torch.zeros(flow.dim, dtype=F64), torch.ones(flow.dim, dtype=F64), buffer=True
    )
    return zuko.lazy.Flow(transforms, base)


class TestRealNVP:
    @pytest.mark.parametrize(("dim", "n_layers", "hidden"), [(2, 4, (8,)), (5, 3, (6, 7)), (6, 1, ())])
    def test_against_zuko(self, dim, n_layers, hidden):
        flow = perturbed(RealNVP(dim, n_layers, hidden, generator=seeded(0)))
        peer = with_zuko(flow)
        x = 2 * normal(1, 20, dim)
        close(flow.log_prob(x), peer().log_prob(x), 1e-11, 1e-11)
        z, log_det = peer().transform.call_and_ladj(x)
        close(flow.inverse(x)[0], z, 1e-11, 1e-11)
        close(flow.inverse(x)[1], log_det, 1e-11, 1e-11)
        close(flow.forward(x)[0], peer().transform.inv(x), 1e-11, 1e-11)
        # the weights of theirs are ours in another order
        gradients = [
            torch.autograd.grad(log_prob(x).mean(), list(model.parameters()))
            for log_prob, model in ((flow.log_prob, flow), (peer().log_prob, peer))
        ]
        ours, theirs = (torch.cat([g.reshape(-1) for g in parts]).sort()[0] for parts in gradients)
        close(ours, theirs, 1e-9, 1e-11)

    def test_layers_take_turns(self):
        flow = RealNVP(5, 4, (6,))
        assert [layer.flip for layer in flow.layers] == [False, True, False, True]
        x = normal(0, 6, 5)
        # one layer keeps the first half; two change every coordinate
        y = perturbed(RealNVP(5, 1, (6,))).forward(x)[0]
        assert torch.equal(y[:, :2], x[:, :2]) and (y[:, 2:] != x[:, 2:]).all()
        assert (perturbed(RealNVP(5, 2, (6,))).forward(x)[0] != x).all()

    def test_layers_have_weights_of_their_own(self):
        flow = RealNVP(4, 3, (6,), generator=seeded(0))
        first = [layer.net[0].weight for layer in flow.layers]
        assert not torch.equal(first[0], first[1]) and not torch.equal(first[0], first[2])

    def test_rejects(self, unchecked):
        for n_layers in (0, -1, 1.5, True):
            with pytest.raises(ValueError, match="n_layers must be"):
                RealNVP(2, n_layers, (4,))
        with pytest.raises(ValueError, match="dim must be at least 2"):
            RealNVP(1, 2, (4,))


def linear_cnf(A, c=None, b=None, **options):
    """v = A x + c t + b."""
    d = len(A)
    flow = CNF(d, (), **options).to(F64)
    c, b = (torch.zeros(d, dtype=F64) if vector is None else vector for vector in (c, b))
    assign(flow.net[0].weight, torch.cat([A, c.unsqueeze(-1)], dim=-1))
    assign(flow.net[0].bias, b)
    return flow


def augmented(A, c, b):
    """M of (x, t, 1)' = M(x, t, 1)."""
    d = len(A)
    M = np.zeros((d + 2, d + 2))
    M[:d, :d], M[:d, d], M[:d, d + 1], M[d, d + 1] = A, c, b, 1
    return M


def carried(P, x, t):
    """x of P(x, t, 1) for every row."""
    rows = np.column_stack([x, np.full(len(x), t), np.ones(len(x))])
    return (rows @ P.T)[:, : x.shape[1]]


def one_steps(M, n):
    """The classical Runge–Kutta method's e^M: the series of e^{M/n} up to the fourth power, n times."""
    step = sum(np.linalg.matrix_power(M / n, k) / math.factorial(k) for k in range(5))
    return np.linalg.matrix_power(step, n)


class TestCNF:
    @given(seeds, st.integers(1, 5), st.integers(1, 20))
    @settings(max_examples=30)
    def test_linear_field(self, seed, d, n_steps):
        A, c, b = normal(seed, d, d) / 2, normal(seed + 1, d), normal(seed + 2, d)
        flow, z = linear_cnf(A, c, b, n_steps=n_steps), normal(seed + 3, 4, d)
        M, trace = augmented(A, c, b), [A.trace()] * 4
        x, log_det = flow.forward(z)
        close(x, carried(one_steps(M, n_steps), z, 0), 1e-12, 1e-12)
        close(log_det, trace, 1e-13, 1e-13)
        back, log_det = flow.inverse(z)
        close(back, carried(one_steps(-M, n_steps), z, 1), 1e-12, 1e-12)
        close(log_det, [-t for t in trace], 1e-13, 1e-13)

    def test_sample_is_forward_and_both_follow_n_steps(self):
        flow = linear_cnf(normal(0, 2, 2), normal(1, 2), normal(2, 2), n_steps=1)
        z = torch.randn(7, 2, dtype=F64, generator=seeded(5))
        for flow.n_steps in (1, 4):
            x = carried(one_steps(augmented(normal(0, 2, 2), normal(1, 2), normal(2, 2)), flow.n_steps), z, 0)
            close(flow.forward(z)[0], x, 1e-12, 1e-12)
            close(flow.sample(7, generator=seeded(5)), x, 1e-12, 1e-12)

    def test_linear_field_tends_to_the_exponential(self):
        A, c, b, z = normal(0, 3, 3), normal(1, 3), normal(2, 3), normal(3, 5, 3)
        P = scipy.linalg.expm(augmented(A, c, b))
        exact = carried(P, z.numpy(), 0)
        errors, returns = [], []
        for n_steps in (16, 32):
            flow = linear_cnf(A, c, b, n_steps=n_steps)
            x = flow.forward(z)[0]
            errors.append(np.abs(x.detach().numpy() - exact).max())
            returns.append((flow.inverse(x)[0] - z).abs().max().item())
        assert 3.7 < math.log2(errors[0] / errors[1]) < 4.5
        # forth and back: e^{M/n} - M⁵/120n⁵ times e^{-M/n} + M⁵/120n⁵ leaves O(n⁻⁶) a step
        assert 4.7 < math.log2(returns[0] / returns[1]) < 5.5

    def test_gaussian(self):
        # the law of x is N(∫e^{A(1-s)}b ds, e^A e^{Aᵀ}), and RK4 with 64 steps is exact to |A|⁵64⁻⁴/120
        A, b = normal(0, 2, 2), normal(1, 2)
        P = scipy.linalg.expm(augmented(A, np.zeros(2), b))
        x = normal(2, 10, 2)
        exact = scipy.stats.multivariate_normal(P[:2, 3], P[:2, :2] @ P[:2, :2].T).logpdf(x)
        close(linear_cnf(A, b=b, n_steps=64).log_prob(x), exact, 1e-6, 1e-6)

    @pytest.mark.parametrize("hidden", [(), (7,), (7, 6), (4, 5, 6)])
    @pytest.mark.parametrize("dim", [1, 2, 5])
    def test_divergence_is_the_trace(self, dim, hidden):
        # RK4 of (velocity, trace of its Jacobian), the trace from autograd
        flow = perturbed(CNF(dim, hidden, n_steps=3, generator=seeded(0)), scale=0.5)
        still = parameters_removed(flow)

        def field(t, state):
            x = state[:, :-1]
            trace = [torch.func.jacrev(lambda x: still.velocity(t, x))(point).trace() for point in x]
            return torch.cat([still.velocity(t, x), torch.stack(trace).unsqueeze(-1)], dim=-1)

        z = normal(1, 4, dim)
        state = torch.cat([z, torch.zeros(4, 1, dtype=F64)], dim=-1)
        end = odeint(field, state, [0, 1 / 3, 2 / 3, 1])[-1]
        x, log_det = flow.forward(z)
        close(x, end[:, :-1], 1e-12, 1e-12)
        close(log_det, end[:, -1], 1e-12, 1e-12)
        # backwards in time the field is -v(1 - t, ·)
        end = odeint(lambda t, state: -field(1 - t, state), state, [0, 1 / 3, 2 / 3, 1])[-1]
        x, log_det = flow.inverse(z)
        close(x, end[:, :-1], 1e-12, 1e-12)
        close(log_det, end[:, -1], 1e-12, 1e-12)

    def test_against_zuko(self):
        flow = perturbed(CNF(2, (8,), n_steps=64, generator=seeded(0)))
        still = parameters_removed(flow)
        peer = zuko.transforms.FreeFormJacobianTransform(
            lambda t, x: still.velocity(t.item(), x),
            t0=torch.tensor(0.0, dtype=F64),
            t1=torch.tensor(1.0, dtype=F64),
            atol=1e-10,
            rtol=1e-10,
        )
        z = normal(1, 10, 2)
        for ours, theirs in ((flow.forward, peer), (flow.inverse, peer.inv)):
            for mine, their in zip(ours(z), theirs.call_and_ladj(z), strict=True):
                close(mine, their, 1e-7, 1e-7)

    def test_converges_at_fourth_order(self):
        flows = [perturbed(CNF(2, (8,), n_steps=n, generator=seeded(0)), scale=1.0) for n in (8, 16, 256)]
        z = normal(1, 10, 2)
        results = [torch.cat([flow.forward(z)[0], flow.forward(z)[1].unsqueeze(-1)], -1).detach() for flow in flows]
        errors = [(result - results[2]).abs().max().item() for result in results[:2]]
        assert 3.5 < math.log2(errors[0] / errors[1]) < 5

    def test_velocity(self):
        A, c, b = normal(0, 2, 2), normal(1, 2), normal(2, 2)
        flow, x = linear_cnf(A, c, b), normal(3, 4, 2)
        close(flow.velocity(0.3, x), x @ A.T + 0.3 * c + b, 1e-13, 1e-13)
        close(flow.velocity(1, x[0]), x[0] @ A.T + c + b, 1e-13, 1e-13)
        deep = perturbed(CNF(2, (5, 4)))
        W1, b1, W2, b2, W3, b3 = deep.parameters()
        inputs = torch.cat([x, torch.full((4, 1), 0.7, dtype=F64)], dim=-1)
        expected = torch.tanh(torch.tanh(inputs @ W1.T + b1) @ W2.T + b2) @ W3.T + b3
        close(deep.velocity(0.7, x), expected, 1e-13, 1e-13)

    def test_velocity_checks_points(self, unchecked):
        with pytest.raises(ValueError, match="points must be floating with a last axis of 2"):
            CNF(2, (3,)).velocity(0.0, torch.zeros(4, 3))

    def test_probes_of_a_linear_field(self):
        # εᵀAε = tr A ± (A₁₂ + A₂₁) in two dimensions, whole along a path only if ε is fixed there
        A = torch.tensor([[0.3, 0.9], [-0.2, -0.5]], dtype=F64)
        n = 2000
        flow = linear_cnf(A, n_steps=5, n_probes=1, generator=seeded(0))
        for method, sign in ((flow.forward, 1), (flow.inverse, -1)):
            log_det = sign * method(normal(1, n, 2))[1].detach()
            upper = (log_det - 0.5).abs() < 1e-12
            assert (upper | ((log_det + 0.9).abs() < 1e-12)).all()
            assert abs(upper.double().mean() - 0.5) < 5 * 0.5 / math.sqrt(n)
        # with two probes for each point: the mean of two, tr A again with probability ½
        log_det = linear_cnf(A, n_probes=2, generator=seeded(0)).forward(normal(1, n, 2))[1].detach()
        parts = [((log_det - value).abs() < 1e-12).double().mean() for value in (-0.9, -0.2, 0.5)]
        np.testing.assert_allclose(parts, [0.25, 0.5, 0.25], atol=5 * 0.5 / math.sqrt(n))

    @pytest.mark.parametrize("n_probes", [1, 3])
    def test_variance_of_probes(self, n_probes):
        # εᵀAε - tr A = 2 Σ_{i<j} S_ij ε_iε_j has mean 0 and variance 4 Σ_{i<j} S_ij² = 2(|S|² - Σ S_ii²)
        A, n = normal(0, 4, 4), 40_000
        S = (A + A.T) / 2
        variance = 2 * ((S**2).sum() - (S.diagonal() ** 2).sum()).item() / n_probes
        flow = linear_cnf(A, n_steps=1, n_probes=n_probes, generator=seeded(1))
        deviation = (flow.forward(torch.zeros(n, 4, dtype=F64))[1] - A.trace()).detach()
        assert abs(deviation.mean()) < 5 * math.sqrt(variance / n)
        squares = deviation**2
        assert abs(squares.mean() - variance) < 5 * squares.std() / math.sqrt(n)

    def test_probes_are_unbiased(self):
        flow = perturbed(CNF(3, (6,), n_steps=4, n_probes=2, generator=seeded(0)), scale=0.6)
        exact = perturbed(CNF(3, (6,), n_steps=4, generator=seeded(0)), scale=0.6)
        n = 20_000
        x = normal(2, 3).expand(n, 3)
        for method in ("forward", "inverse"):
            points, log_det = getattr(flow, method)(x)
            single, expected = getattr(exact, method)(x[0])
            close(points, single.expand(n, 3), 1e-12, 1e-12)
            assert log_det.std() > 0.01
            assert abs(log_det.mean() - expected) < 5 * log_det.std() / math.sqrt(n)
        log_prob = flow.log_prob(x)
        assert abs(log_prob.mean() - exact.log_prob(x[0])) < 5 * log_prob.std() / math.sqrt(n)

    def test_probes_follow_from_the_generator(self):
        x = normal(2, 8, 3)
        first, again, other = (
            perturbed(CNF(3, (6,), n_steps=2, n_probes=1, generator=seeded(seed))) for seed in (0, 0, 1)
        )
        other.load_state_dict(first.state_dict())
        state = torch.get_rng_state()
        values = first.log_prob(x)
        assert torch.equal(values, again.log_prob(x)) and torch.equal(state, torch.get_rng_state())
        # drawn anew in every call, and not the same for all points
        assert not torch.equal(values, first.log_prob(x)) and not torch.equal(values, other.log_prob(x))
        same = first.log_prob(x[:1].expand(40, 3))
        assert len(same.unique()) > 1

    def test_gradients_with_probes(self):
        flow = perturbed(CNF(2, (4,), n_steps=2, n_probes=2, generator=seeded(0)))
        x = normal(3, 2, 2).requires_grad_()

        def log_prob(x, *_):
            flow.generator.manual_seed(7)
            return flow.log_prob(x)

        assert torch.autograd.gradcheck(log_prob, (x, *flow.parameters()), fast_mode=True)

    @pytest.mark.parametrize("device", DEVICES)
    @pytest.mark.parametrize("shape", [(), (5,), (2, 3), (0,)])
    def test_shapes_with_probes(self, shape, device):
        flow = perturbed(CNF(3, (4,), n_steps=2, n_probes=2, generator=seeded(0))).to(device)
        for method in (flow.forward, flow.inverse):
            points, log_det = method(normal(0, *shape, 3).to(device))
            assert points.shape == (*shape, 3) and log_det.shape == shape and log_det.device.type == device

    def test_defaults(self):
        assert CNF(16, (2,)).n_probes == 0 and CNF(17, (2,)).n_probes == 1
        assert CNF(17, (2,), n_probes=0).n_probes == 0 and CNF(2, (2,), n_probes=3).n_probes == 3
        # sixteen steps: of x' = x they are not fifteen or seventeen
        flow = linear_cnf(torch.eye(1, dtype=F64))
        assert flow.forward(torch.ones(1, dtype=F64))[0].item() == pytest.approx(
            sum(16.0**-k / math.factorial(k) for k in range(5)) ** 16, rel=1e-13
        )

    def test_exact_divergence_above_sixteen_dimensions(self):
        A = normal(0, 20, 20) / 5
        close(linear_cnf(A, n_steps=2, n_probes=0).forward(normal(1, 3, 20))[1], [A.trace()] * 3, 1e-12, 1e-12)

    def test_tells_the_step_of_a_divergence(self):
        # x' = 1e80 x: one step multiplies by (1e80/4)⁴/24, the first overflows
        with pytest.raises(FloatingPointError, match="step"):
            linear_cnf(1e80 * torch.eye(1, dtype=F64), n_steps=4).forward(torch.ones(2, 1, dtype=F64))

    def test_rejects(self, unchecked):
        with pytest.raises(ValueError, match="dim must be at least 1"):
            CNF(0, (3,))
        for n_steps in (0, -1, 1.5, True):
            with pytest.raises(ValueError, match="n_steps must be"):
                CNF(2, (3,), n_steps=n_steps)
        for n_probes in (-1, 1.0, True):
            with pytest.raises(ValueError, match="n_probes must be"):
                CNF(2, (3,), n_probes=n_probes)
        with pytest.raises(ValueError, match="sizes"):
            CNF(2, (0,))
