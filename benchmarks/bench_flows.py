"""Normalizing flows."""

import functools
import math

import pytest
import torch
import torchdiffeq
import zuko
from comparison import Close, Work
from torch.distributions import Transform

from coursekit import flows
from coursekit.random import torch_stream

LAYERS, HIDDEN, STEPS = 6, (64, 64), 16
BATCHES = (1000, 2000, 4000, 8000, 16_000)
TYPICAL = 512
CNF_BATCHES = {
    ("training step", 2): (512, 1024, 2048, 4096),
    ("training step", 16): (64, 128, 256, 512, 1024),
    ("log_prob", 2): BATCHES,
    ("log_prob", 16): (1000, 2000, 4000, 8000),
    ("sample", 2): BATCHES,
    ("sample", 16): BATCHES,
}


# --- couplings ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [2, 16])
def bench_real_nvp_training(compare, dim):
    def make(n):
        ours, theirs, x = *real_nvp(dim), points(n, dim)
        inputs = [torch.randn(n, layer.net[0].in_features) for layer in ours.layers]
        idle = real_nvp(dim)[0]

        def networks():
            return sum(layer.net(u).mean() for layer, u in zip(idle.layers, inputs, strict=True))

        return Work(
            ours=training_step(ours, lambda: -ours.log_prob(x).mean(), ours.layers[-1].net[0].weight),
            peers={
                "zuko": training_step(
                    theirs, lambda: -theirs().log_prob(x).mean(), theirs.transform.transforms[0].hyper[0].weight
                )
            },
            floor=training_step(idle, networks, idle.layers[-1].net[0].weight),
        )

    compare(
        f"RealNVP in {dim} dimensions, {LAYERS} layers: training step",
        make,
        BATCHES,
        at=TYPICAL,
        unit="points",
        agree=Close(rtol=1e-4, atol=1e-5),
        floor="the networks forward and backward, and Adam",
        growth="n",
        kind="torch",
        reason="small batches are dominated by the calls of torch's functions, whose cost does not grow.",
    )


@pytest.mark.parametrize("task", ["log_prob", "sample"])
def bench_real_nvp(compare, task, dim=16):
    def make(n):
        ours, theirs, x = *real_nvp(dim), points(n, dim)
        inputs = [torch.randn(n, layer.net[0].in_features) for layer in ours.layers]

        def their_sample():
            z = torch.randn(n, dim, generator=torch_stream(0, "z"))
            return theirs().transform.inv(z)

        return no_grad(
            Work(
                ours=lambda: ours.log_prob(x) if task == "log_prob" else ours.sample(n, generator=torch_stream(0, "z")),
                peers={"zuko": (lambda: theirs().log_prob(x)) if task == "log_prob" else their_sample},
                floor=lambda: [layer.net(u) for layer, u in zip(ours.layers, inputs, strict=True)],
            )
        )

    compare(
        f"RealNVP in {dim} dimensions, {LAYERS} layers: {task}",
        make,
        BATCHES,
        at=TYPICAL,
        unit="points",
        agree=Close(rtol=1e-4, atol=1e-5),
        floor="the networks forward",
        growth="n",
        kind="torch",
    )


class BoundedAffine(zuko.transforms.MonotonicAffineTransform):
    """zuko's affine map with the bound that we have for the logarithm of the scale."""

    def __init__(self, shift, scale):
        Transform.__init__(self)
        self.shift, self.log_scale = shift, 2 * torch.tanh(scale / 2)
        self.scale = self.log_scale.exp()


def real_nvp(dim):
    """A flow and the same in zuko, with equal weights."""
    ours = perturbed(flows.RealNVP(dim, LAYERS, HIDDEN, generator=torch_stream(0, "weights")))
    couplings = []
    for layer in reversed(ours.layers):  # zuko's transforms go from data to latent points
        kept = (torch.arange(dim) >= dim // 2) if layer.flip else (torch.arange(dim) < dim // 2)
        coupling = zuko.flows.GeneralCouplingTransform(
            dim,
            mask=kept,
            univariate=lambda shift, scale: BoundedAffine(shift, scale).inv,
            hidden_features=HIDDEN,
            activation=torch.nn.Tanh,
        )
        with torch.no_grad():
            for mine, other in zip(layer.net.parameters(), coupling.hyper.parameters(), strict=True):
                other.copy_(mine)
            last = coupling.hyper[-1]
            for parameter in last.parameters():  # all scales, then all shifts, against shift and scale in turn
                scale, shift = parameter.clone().chunk(2)
                parameter.copy_(torch.stack([shift, scale], dim=1).flatten(0, 1))
        couplings.append(coupling)
    base = zuko.lazy.UnconditionalDistribution(
        zuko.distributions.DiagNormal, torch.zeros(dim), torch.ones(dim), buffer=True
    )
    return ours, zuko.flows.Flow(couplings, base)


# --- continuous flows ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [2, 16])
@pytest.mark.parametrize("task", ["training step", "log_prob", "sample"])
def bench_cnf(compare, task, dim):
    training = task == "training step"

    def make(n):
        x, flow = points(n, dim), continuous(dim)
        if task == "sample":
            z = torch.randn(n, dim, generator=torch_stream(0, "z"))
            return no_grad(
                Work(
                    ours=lambda: flow.sample(n, generator=torch_stream(0, "z")),
                    peers={"torchdiffeq": lambda: solved(lambda t, x: flow.velocity(t.item(), x), z)},
                    floor=lambda: [flow.velocity(0.0, z) for _ in range(4 * STEPS)],
                )
            )
        densities = {"torchdiffeq": with_torchdiffeq, "zuko": with_zuko}
        if not training:
            return no_grad(
                Work(
                    ours=lambda: flow.log_prob(x),
                    peers={name: functools.partial(density, flow, x) for name, density in densities.items()},
                    floor=lambda: [flow.velocity(0.0, x) for _ in range(4 * STEPS)],
                )
            )
        models = {name: continuous(dim) for name in densities}
        idle = continuous(dim)
        return Work(
            ours=training_step(flow, lambda: -flow.log_prob(x).mean(), flow.net[0].weight),
            peers={
                name: training_step(
                    model, lambda d=densities[name], model=model: -d(model, x).mean(), model.net[0].weight
                )
                for name, model in models.items()
            },
            floor=training_step(
                idle, lambda: sum(idle.velocity(0.0, x).mean() for _ in range(4 * STEPS)), idle.net[0].weight
            ),
        )

    compare(
        f"CNF in {dim} dimensions, {STEPS} steps: {task}",
        make,
        CNF_BATCHES[task, dim],
        at=TYPICAL,
        unit="points",
        agree=Close(rtol=1e-4, atol=1e-4),
        floor="the velocity alone, forward and backward, and Adam" if training else "the velocity alone",
        growth="n",
        kind="torch",
    )


def continuous(dim):
    """A flow as strong as its steps admit: log_prob has errors of 2e-6 in 2 dimensions and of 3e-5 in 16."""
    flow = flows.CNF(dim, HIDDEN, n_steps=STEPS, generator=torch_stream(0, "weights"))
    with torch.no_grad():
        flow.net[0].weight *= 3
        flow.net[-1].weight.normal_(std=0.5, generator=torch_stream(0, "perturbation"))
    return flow


def solved(field, start):
    """The end of a path, on our grid; torchdiffeq's "rk4" is the 3/8 rule, of the order and cost of ours."""
    return torchdiffeq.odeint(field, start, torch.linspace(0, 1, STEPS + 1), method="rk4")[-1]


def with_torchdiffeq(flow, x):
    """log_prob with the trace by automatic differentiation."""

    def field(s, state):
        options = {"create_graph": torch.is_grad_enabled(), "retain_graph": True}
        with torch.enable_grad():
            x = state[0] if state[0].requires_grad else state[0].requires_grad_()
            velocity = flow.velocity(1 - s.item(), x)
            rows = [torch.autograd.grad(v.sum(), x, **options)[0][:, i] for i, v in enumerate(velocity.T)]
        return -velocity, -sum(rows[1:], rows[0])

    grid = torch.linspace(0, 1, STEPS + 1)
    start = x.clone(), torch.zeros(len(x))
    z, log_det = (part[-1] for part in torchdiffeq.odeint(field, start, grid, method="rk4"))
    return log_det + normal(z)


def with_zuko(flow, x):
    """log_prob with zuko's adaptive solver, its tolerance set for our accuracy, and its exact trace."""
    tolerance = 3e-6 if flow.dim == 2 else 1e-5
    transform = zuko.transforms.FreeFormJacobianTransform(
        lambda t, x: flow.velocity(t.item(), x),
        t0=torch.tensor(1.0),
        t1=torch.tensor(0.0),
        phi=flow.parameters() if torch.is_grad_enabled() else (),
        atol=tolerance,
        rtol=tolerance,
    )
    z, log_det = transform.call_and_ladj(x)
    return log_det + normal(z)


def normal(z):
    return -0.5 * (z * z).sum(-1) - 0.5 * z.shape[-1] * math.log(2 * math.pi)


# --- the line -----------------------------------------------------------------------------------------------


def bench_flow1d_sample(compare):
    def make(n):
        flow = flows.Flow1D(8).double()
        peer = zuko.transforms.MonotonicTransform(lambda x: flow.inverse(x.unsqueeze(-1))[0].squeeze(-1), bound=20.0)
        z = torch.randn(n, 1, generator=torch_stream(0, "z"), dtype=torch.float64)
        return no_grad(
            Work(
                ours=lambda: flow.sample(n, generator=torch_stream(0, "z")).squeeze(-1),
                peers={"zuko, bisection": lambda: peer.inv(z.squeeze(-1))},
                floor=lambda: flow.inverse(z),
            )
        )

    compare(
        "Flow1D(8), float64: sample",
        make,
        (3000, 10_000, 30_000, 100_000),
        unit="points",
        agree=Close(rtol=0, atol=1e-5),
        floor="the map once",
        growth="n",
        kind="torch",
    )


# --- shared -------------------------------------------------------------------------------------------------


def points(n, dim):
    return torch.randn(n, dim, generator=torch_stream(0, "data"))


def perturbed(flow):
    """A new flow is the identity."""
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch_stream(0, "perturbation"))
    return flow


def training_step(model, loss, watched):
    """A function that makes a step of Adam, and gives the loss before it and the gradient in `watched`."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)

    def step():
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        return value.detach(), watched.grad

    return step


def no_grad(work):
    wrapped = torch.no_grad()
    return Work(wrapped(work.ours), {name: wrapped(call) for name, call in work.peers.items()}, wrapped(work.floor))
