"""Diffusion and flow matching against plain code of the field and peer libraries: ratios of times measured in turn, in
one run, one thread. Answers are compared before they are timed.

The sampler's and the training step's peer is a loop as one writes it by hand for one network and one noise schedule
(the style of smalldiffusion): noise level σ, z = x_0 + σ ε, a denoiser with the same preconditioning and network. The
mixture's is torch.distributions with automatic differentiation; the data set's a difference tensor (m, N, d).
"""

import itertools
import os

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # read when torch is imported

import numpy as np
import ot
import torch
import torchdiffeq
from _timing import in_turn
from rich.console import Console
from rich.table import Table
from torch import distributions

from coursekit import diffusion, interpolants, nn
from coursekit.random import torch_stream

VP = diffusion.VPSchedule()
STD = 5.0
NETWORKS = {
    "TimeMLP(2, (64, 64, 64))": (lambda: nn.TimeMLP(2, (64, 64, 64), generator=torch_stream(0, "net")), (2,)),
    "UNet()": (lambda: nn.UNet(generator=torch_stream(0, "net")), (1, 28, 28)),
}


def row(label, peer, ours, theirs, repeats):
    mine, other, ratio = in_turn(ours, theirs, repeats)
    return label, peer, f"{1e3 * mine:.1f}", f"{1e3 * other:.1f}", f"{1 / ratio:.2f}"


def perturbed(net):
    """A new network gives zero."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=torch_stream(0, "perturbation"))
    return net


def denoised(net, z, sigma):
    """E[x_0 | z] with the preconditioning of Karras et al.; σ is a number or one for each point."""
    column = sigma.view(-1, *(1,) * (z.ndim - 1))
    v = STD**2 + column**2
    return STD**2 / v * z + STD * column / v.sqrt() * net(z / v.sqrt(), sigma.log().expand(len(z)))


@torch.no_grad()
def plain_sampler(net, z, sigmas):
    for sigma, following in itertools.pairwise(sigmas):
        z = z + (following - sigma) * (z - denoised(net, z, sigma)) / sigma
    return z


def sampling(name, n, n_steps, repeats):
    build, shape = NETWORKS[name]
    net = perturbed(build())
    model = diffusion.ScoreModel(net, VP, STD)
    start = torch.randn(n, *shape, generator=torch_stream(0, "start"))

    def ours(n_steps=n_steps):
        return diffusion.reverse_process(
            model, VP, start, diffusion.time_grid(VP, n_steps), noise=0.0, record_every=n_steps
        )[-1]

    def theirs(n_steps=n_steps):
        t = diffusion.time_grid(VP, n_steps)
        alpha, sigma = VP.alpha(t), VP.sigma(t)
        z = plain_sampler(net, start / alpha[0].float(), (sigma / alpha).float())
        return alpha[-1].float() * z

    # two discretisations of one flow: they meet as the steps shrink
    gap = [float((ours(k) - theirs(k)).square().mean().sqrt()) for k in (50, 200)]
    assert gap[1] < 0.4 * gap[0] and gap[1] < 0.1, gap
    return row(f"{n_steps} sampling steps of {n} points, {name}", "plain loop", ours, theirs, repeats)


def training_step(name, n, repeats):
    build, shape = NETWORKS[name]
    x0 = STD * torch.randn(n, *shape, generator=torch_stream(0, "data"))
    nets = perturbed(build()), perturbed(build())
    model = diffusion.ScoreModel(nets[0], VP, STD)
    generators = torch_stream(0, "ours"), torch_stream(0, "theirs")

    def plain_loss():
        t = 1e-4 + (1 - 1e-4) * torch.rand(n, generator=generators[1])
        B = 0.1 * t + 9.95 * t * t
        sigma = torch.expm1(B).sqrt()
        column = sigma.view(-1, *(1,) * (x0.ndim - 1))
        z = x0 + column * torch.randn(x0.shape, generator=generators[1])
        # |σ s + ε|² with σ s = (D - z)/σ in the noise levels of z
        return ((denoised(nets[1], z, sigma) - x0) / column).square().mean()

    def step(loss, net):
        optimizer = torch.optim.Adam(net.parameters(), 1e-4)

        def call():
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()

        return call

    def our_loss():
        return diffusion.dsm_loss(model, x0, VP, generator=generators[0])

    values = [[float(loss().detach()) for _ in range(20)] for loss in (our_loss, plain_loss)]
    spread = np.hypot(*(np.std(v, ddof=1) / 20**0.5 for v in values))
    assert abs(np.mean(values[0]) - np.mean(values[1])) < 5 * spread
    calls = step(our_loss, nets[0]), step(plain_loss, nets[1])
    return row(f"training step, batch {n}, {name}", "plain loop", *calls, repeats)


def mixture(k, d, n, repeats):
    g = torch_stream(0, "mixture")
    A, means = torch.randn(k, d, d, generator=g).double(), 3 * torch.randn(k, d, generator=g).double()
    law = diffusion.GaussianMixture(
        torch.full((k,), 1 / k, dtype=torch.float64), means, A @ A.mT + torch.eye(d).double()
    )
    x = law.sample(n, generator=g)
    components = distributions.MultivariateNormal(law.means, law.covs)
    peer = distributions.MixtureSameFamily(distributions.Categorical(law.weights), components)

    def theirs():
        points = x.detach().requires_grad_()
        return torch.autograd.grad(peer.log_prob(points).sum(), points)[0]

    torch.testing.assert_close(law.score(x), theirs())
    label = f"score of a mixture, {k} components in {d} dimensions, {n} points"
    return row(label, "torch.distributions, autograd", lambda: law.score(x), theirs, repeats)


def data_set(N, d, m, repeats):
    g = torch_stream(0, "data set")
    data, x = torch.randn(N, d, generator=g), torch.randn(m, d, generator=g)

    def theirs():
        offset = 0.8 * data - x.unsqueeze(1)
        weights = torch.softmax(-offset.square().sum(-1) / (2 * 0.6**2), dim=1)
        return (weights.unsqueeze(-1) * offset).sum(1) / 0.6**2

    def ours():
        return diffusion.empirical_score(x, data, 0.8, 0.6)

    torch.testing.assert_close(ours(), theirs(), rtol=1e-3, atol=1e-3)
    return row(f"score of {N} data in {d} dimensions, {m} points", "differences (m, N, d)", ours, theirs, repeats)


def likelihood(n, n_steps, repeats):
    model = diffusion.ScoreModel(perturbed(NETWORKS["TimeMLP(2, (64, 64, 64))"][0]()), VP, STD)
    x = STD * torch.randn(n, 2, generator=torch_stream(0, "x"))
    times = diffusion.time_grid(VP, n_steps).flip(0).float()

    def field(t, state):
        with torch.enable_grad():
            x = state[0].requires_grad_()
            velocity = VP.rate(t).float() * x - 0.5 * VP.beta(t).float() * model(x, t)
            rows = [torch.autograd.grad(v.sum(), x, retain_graph=True)[0][:, i] for i, v in enumerate(velocity.T)]
        return velocity.detach(), sum(rows[1:], rows[0])

    def theirs():
        with torch.no_grad():
            # torchdiffeq's "rk4" is the 3/8 rule; of the same order and cost as ours
            z, trace = (part[-1] for part in torchdiffeq.odeint(field, (x, torch.zeros(n)), times, method="rk4"))
        return -0.5 * (z * z).sum(-1) - np.log(2 * np.pi) + trace

    def ours():
        return diffusion.ode_log_likelihood(model, VP, x, n_steps)

    torch.testing.assert_close(ours(), theirs(), rtol=1e-3, atol=1e-2)
    return row(f"log-likelihood of {n} points, {n_steps} steps", "torchdiffeq, autograd trace", ours, theirs, repeats)


def pairs(n, repeats):
    x0, x1 = (torch.randn(n, 2, generator=torch_stream(0, name)) for name in ("x0", "x1"))
    uniform = np.full(n, 1 / n)

    def theirs():
        plan = ot.emd(uniform, uniform, ot.dist(x0.numpy(), x1.numpy()))
        return torch.from_numpy(plan.argmax(axis=1))

    def ours():
        return interpolants.ot_pairs(x0, x1, n)

    assert torch.equal(ours(), theirs())
    return row(f"optimal pairs of {n} points", "POT", ours, theirs, repeats)


def main() -> None:
    table = Table("problem", "peer", "our ms", "peer's ms", "peer's time / ours")
    results = (
        sampling("TimeMLP(2, (64, 64, 64))", 10_000, 100, 5),
        sampling("TimeMLP(2, (64, 64, 64))", 100, 100, 15),
        sampling("UNet()", 50, 20, 3),
        training_step("TimeMLP(2, (64, 64, 64))", 512, 100),
        training_step("UNet()", 16, 20),
        mixture(9, 2, 10_000, 15),
        mixture(20, 10, 2000, 15),
        data_set(4000, 784, 32, 5),
        data_set(1000, 2, 1000, 15),
        likelihood(500, 50, 5),
        pairs(256, 15),
    )
    for result in results:
        table.add_row(*result)
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
