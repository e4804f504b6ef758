"""Diffusion and flow matching."""

import math

import numpy as np
import ot
import pytest
import scipy.optimize
import torch
import torchdiffeq
from comparison import Agreement, Close, Work
from torch import distributions

from coursekit import diffusion, interpolants, nn
from coursekit.random import torch_stream

VP = diffusion.VPSchedule()
STD = 5.0
T_MIN = 1e-4
NETWORKS = {
    "TimeMLP": (lambda: nn.TimeMLP(2, (64, 64, 64), generator=torch_stream(0, "net")), (2,)),
    "UNet": (lambda: nn.UNet(generator=torch_stream(0, "net")), (1, 28, 28)),
}


# --- training and sampling, against plain code for one network and one schedule ------------------------------


@pytest.mark.parametrize(
    ("network", "sizes", "typical"),
    [("TimeMLP", (2000, 4000, 8000, 16_000, 32_000), 512), ("UNet", (32, 64, 128, 256), 32)],
    ids=NETWORKS,
)
def bench_score_training(compare, network, sizes, typical):
    build, shape = NETWORKS[network]

    def make(n):
        x0 = STD * torch.randn(n, *shape, generator=torch_stream(0, "data"))
        nets = [perturbed(build()) for _ in range(3)]
        model = diffusion.ScoreModel(nets[0], VP, STD)
        draws = torch_stream(0, "draws"), torch_stream(0, "draws")
        levels = torch.linspace(-4, 4, n)
        return Work(
            ours=training_step(nets[0], lambda: diffusion.dsm_loss(model, x0, VP, t_min=T_MIN, generator=draws[0])),
            peers={"plain loop": training_step(nets[1], lambda: plain_loss(nets[1], x0, draws[1]))},
            floor=training_step(nets[2], lambda: nets[2](x0, levels).square().mean()),
        )

    compare(
        f"Score matching, {network}: training step",
        make,
        sizes,
        at=typical,
        unit="points",
        agree=Close(rtol=1e-4, atol=1e-4),
        floor="the network forward and backward, and Adam",
        growth="n",
        kind="torch",
        reason="The plain loop has one schedule and no checks, and the loss is written for its network: our schedule, "
        "score and loss do not know of each other, which takes about 0.1 ms a step."
        if network == "TimeMLP"
        else "",
    )


@pytest.mark.parametrize(
    ("network", "n_steps", "sizes", "typical"),
    [("TimeMLP", 50, (2000, 4000, 8000, 16_000, 32_000), 1000), ("UNet", 6, (16, 32, 64, 128), 16)],
    ids=NETWORKS,
)
def bench_reverse_process(compare, network, n_steps, sizes, typical):
    build, shape = NETWORKS[network]
    net = perturbed(build())
    model = diffusion.ScoreModel(net, VP, STD)
    times = diffusion.time_grid(VP, n_steps)

    def make(n):
        start = torch.randn(n, *shape, generator=torch_stream(0, "start"))
        levels = torch.zeros(n)

        def ours():
            path = diffusion.reverse_process(
                model, VP, start, times, record_every=n_steps, generator=torch_stream(0, "noise")
            )
            return path[-1]

        return no_grad(
            Work(
                ours=ours,
                peers={"plain loop": lambda: plain_sampler(net, start, times, torch_stream(0, "noise"))},
                floor=lambda: [net(start, levels) for _ in range(n_steps)],
            )
        )

    compare(
        f"Reverse process, {network}: {n_steps} steps",
        make,
        sizes,
        at=typical,
        unit="points",
        agree=Close(rtol=1e-3, atol=1e-3),
        floor="the network alone",
        growth="n",
        kind="torch",
        reason="Each of our steps checks the time, that the paths are finite and that the step is stable: about 0.1 "
        "ms, which counts for a small network and fewer than ten thousand points; beside a UNet it is of the size of "
        "the scatter.",
    )


def denoised(net, x, alpha, sigma):
    """E[x_0 | x_t = x] with the preconditioning of Karras et al.; the levels are numbers, or columns of them."""
    v = (alpha * STD) ** 2 + sigma**2
    level = (sigma / alpha).log().flatten().expand(len(x))
    return (alpha * STD**2 / v) * x + (STD * sigma / v.sqrt()) * net(x / v.sqrt(), level)


def levels_at(t):
    B = 0.1 * t + 9.95 * t * t
    return (-0.5 * B).exp(), (-torch.expm1(-B)).sqrt()


def plain_loss(net, x0, generator):
    n = len(x0)
    u = (torch.arange(n) + torch.rand(n, generator=generator)) / n
    t = T_MIN + (1 - T_MIN) * u[torch.randperm(n, generator=generator)]
    alpha, sigma = levels_at(t.view(-1, *(1,) * (x0.ndim - 1)))
    x = alpha * x0 + sigma * torch.randn(x0.shape, generator=generator)
    # σ s + ε = α (D - x_0)/σ
    return (alpha / sigma * (denoised(net, x, alpha, sigma) - x0)).square().mean()


def plain_sampler(net, x, times, generator):
    alphas, sigmas = (level.float() for level in levels_at(times))
    betas = (0.1 + 19.9 * times).tolist()
    steps = (times[:-1] - times[1:]).tolist()
    for alpha, sigma, beta, h in zip(alphas, sigmas, betas, steps, strict=False):
        score = (alpha * denoised(net, x, alpha, sigma) - x) / sigma**2
        z = torch.randn(x.shape, generator=generator)
        x = x + h * beta * (0.5 * x + score) + math.sqrt(beta * h) * z
    return x


# --- likelihood ---------------------------------------------------------------------------------------------


def bench_ode_log_likelihood(compare, n_steps=20):
    model = diffusion.ScoreModel(perturbed(NETWORKS["TimeMLP"][0]()), VP, STD)
    times = diffusion.time_grid(VP, n_steps).flip(0).float()

    def field(t, state):
        with torch.enable_grad():
            x = state[0].requires_grad_()
            velocity = VP.rate(t).float() * x - 0.5 * VP.beta(t).float() * model(x, t)
            rows = [torch.autograd.grad(v.sum(), x, retain_graph=True)[0][:, i] for i, v in enumerate(velocity.T)]
        return velocity.detach(), sum(rows[1:], rows[0])

    def make(n):
        x = STD * torch.randn(n, 2, generator=torch_stream(0, "x"))
        levels = torch.zeros(n)

        def theirs():
            # torchdiffeq's "rk4" is the 3/8 rule, of the order and cost of ours
            z, trace = (part[-1] for part in torchdiffeq.odeint(field, (x, torch.zeros(n)), times, method="rk4"))
            return -0.5 * (z * z).sum(-1) - math.log(2 * math.pi) + trace

        def network():
            points = x.clone().requires_grad_()
            for _ in range(4 * n_steps):
                value = model.net(points, levels)
                for column in value.T:
                    torch.autograd.grad(column.sum(), points, retain_graph=True)

        work = no_grad(
            Work(
                ours=lambda: diffusion.ode_log_likelihood(model, VP, x, n_steps),
                peers={"torchdiffeq": theirs},
                floor=lambda: None,
            )
        )
        return Work(work.ours, work.peers, network)

    compare(
        f"Likelihood by the flow in 2 dimensions, {n_steps} steps",
        make,
        (1000, 2000, 4000, 8000, 16_000),
        at=1000,
        unit="points",
        agree=Close(rtol=1e-3, atol=1e-3),
        floor="the network and its Jacobian",
        growth="n",
        kind="torch",
    )


# --- exact scores, and pairs --------------------------------------------------------------------------------


@pytest.mark.parametrize(("k", "d"), [(9, 2), (20, 10)])
def bench_mixture_score(compare, k, d):
    g = torch_stream(0, "mixture")
    A, means = torch.randn(k, d, d, generator=g).double(), 3 * torch.randn(k, d, generator=g).double()
    weights = torch.full((k,), 1 / k, dtype=torch.float64)
    law = diffusion.GaussianMixture(weights, means, A @ A.mT + torch.eye(d).double())
    components = distributions.MultivariateNormal(law.means, law.covs)
    peer = distributions.MixtureSameFamily(distributions.Categorical(law.weights), components)

    def make(n):
        x = law.sample(n, generator=torch_stream(0, "points"))
        factor = torch.randn(d, k * d, generator=torch_stream(0, "factor")).double()

        def theirs():
            points = x.detach().requires_grad_()
            return torch.autograd.grad(peer.log_prob(points).sum(), points)[0]

        return Work(
            ours=lambda: law.score(x),
            peers={"torch.distributions, autograd": theirs},
            floor=lambda: (x @ factor) @ factor.mT,
        )

    compare(
        f"Score of {k} Gaussians in {d} dimensions",
        make,
        (1000, 2000, 4000, 8000, 16_000),
        at=10_000,
        unit="points",
        agree=Close(rtol=1e-8, atol=1e-10),
        floor="the products with the factors, there and back",
        growth="n",
        kind="torch",
        reason="Arrays of 1.6 kB a point outgrow the cache, and from about 1000 points on every call takes new pages "
        "of memory for them, one a point: 1.1 µs a point for 500 of them, 3.3 µs for 16 000."
        if d == 10
        else "",
    )


@pytest.mark.parametrize(("d", "m"), [(2, 1000), (784, 32)])
def bench_empirical_score(compare, d, m):
    def make(n):
        g = torch_stream(0, "data set")
        data, x = torch.randn(n, d, generator=g), torch.randn(m, d, generator=g)

        def theirs():
            offset = 0.8 * data - x.unsqueeze(1)
            weights = torch.softmax(-offset.square().sum(-1) / (2 * 0.6**2), dim=1)
            return (weights.unsqueeze(-1) * offset).sum(1) / 0.6**2

        return Work(
            ours=lambda: diffusion.empirical_score(x, data, 0.8, 0.6),
            peers={"differences (m, n, d)": theirs},
            floor=lambda: torch.softmax(x @ data.mT, dim=1) @ data,
        )

    compare(
        f"Score of a noisy data set in {d} dimensions at {m} points",
        make,
        (250, 500, 1000, 2000, 4000),
        unit="data",
        agree=Close(rtol=1e-3, atol=1e-4),
        floor="softmax and the two products",
        growth="n",
        kind="torch",
    )


def bench_ot_pairs(compare):
    def make(n):
        x0, x1 = (torch.randn(n, 2, generator=torch_stream(0, name)) for name in ("x0", "x1"))
        uniform = np.full(n, 1 / n)
        cost = ot.dist(x0.double().numpy(), x1.double().numpy())

        def theirs():
            plan = ot.emd(uniform, uniform, ot.dist(x0.double().numpy(), x1.double().numpy()))
            return torch.from_numpy(plan.argmax(axis=1))

        return Work(
            ours=lambda: interpolants.ot_pairs(x0, x1, n),
            peers={"POT emd": theirs},
            floor=lambda: scipy.optimize.linear_sum_assignment(cost),
        )

    compare(
        "Optimal pairs of points in the plane",
        make,
        (200, 400, 800, 1600),
        at=256,
        unit="pairs",
        agree=Agreement("the same pairs", np.testing.assert_array_equal),
        floor="scipy's assignment alone",
        growth="n³",
        kind="torch",
        reason="The worst case of the assignment is n³; these points are easier.",
    )


# --- shared -------------------------------------------------------------------------------------------------


def perturbed(net):
    """A new network gives zero."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=torch_stream(0, "perturbation"))
    return net


def training_step(net, loss):
    """A function that makes a step of Adam, and gives the loss before it and the gradient in the first weights."""
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4)
    first = next(net.parameters())

    def step():
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        return value.detach(), first.grad

    return step


def no_grad(work):
    wrapped = torch.no_grad()
    return Work(wrapped(work.ours), {name: wrapped(call) for name, call in work.peers.items()}, wrapped(work.floor))
