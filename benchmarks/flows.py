"""Flows against zuko and torchdiffeq: ratios of times measured in turn, in one run, one thread.

RealNVP has zuko's networks: as many parameters, equal activations and batches. The continuous flow and its peer solve
the same equation on the same grid from the same weights and must give the same log_prob; the peer takes the trace of
the Jacobian from one backward pass a dimension, which is how it is usually written.
"""

import math
import os

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # read when torch is imported

import torch
import torchdiffeq
import zuko
from _timing import in_turn
from rich.console import Console
from rich.table import Table

from coursekit import flows
from coursekit.random import torch_stream

BATCH, LAYERS, HIDDEN, STEPS = 512, 6, (64, 64), 16


def row(label, peer, ours, theirs, repeats):
    mine, other, ratio = in_turn(ours, theirs, repeats)
    return label, peer, f"{1e3 * mine:.1f}", f"{1e3 * other:.1f}", f"{1 / ratio:.1f}"


def size(model):
    return sum(parameter.numel() for parameter in model.parameters())


def training_step(model, log_prob, x):
    """A function that makes one step of Adam on the negative log-likelihood."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def step():
        optimizer.zero_grad()
        (-log_prob(x).mean()).backward()
        optimizer.step()

    return step


def real_nvp(dim, repeats):
    x = torch.randn(BATCH, dim, generator=torch_stream(0, "data"))
    ours = flows.RealNVP(dim, LAYERS, HIDDEN, generator=torch_stream(0, "weights"))
    theirs = zuko.flows.RealNVP(dim, transforms=LAYERS, hidden_features=HIDDEN, activation=torch.nn.Tanh)
    assert size(ours) == size(theirs)
    return row(
        f"RealNVP in {dim} dimensions, step of training ({size(ours)} weights)",
        "zuko",
        training_step(ours, ours.log_prob, x),
        training_step(theirs, lambda x: theirs().log_prob(x), x),
        repeats,
    )


def with_torchdiffeq(flow, x):
    """log_prob of a continuous flow, its trace by automatic differentiation."""

    def field(s, state):
        options = {"create_graph": torch.is_grad_enabled(), "retain_graph": True}
        with torch.enable_grad():
            x = state[0].requires_grad_()
            velocity = flow.velocity(1 - s.item(), x)
            rows = [torch.autograd.grad(v.sum(), x, **options)[0][:, i] for i, v in enumerate(velocity.T)]
        return -velocity, -sum(rows[1:], rows[0])

    grid = torch.linspace(0, 1, STEPS + 1)
    zero = torch.zeros(len(x))
    # torchdiffeq's "rk4" is the 3/8 rule; of the same order and cost as ours
    z, log_det = (part[-1] for part in torchdiffeq.odeint(field, (x, zero), grid, method="rk4"))
    return log_det - 0.5 * (z * z).sum(-1) - 0.5 * flow.dim * math.log(2 * math.pi)


def continuous(dim, repeats):
    x = torch.randn(BATCH, dim, generator=torch_stream(0, "data"))
    flow = flows.CNF(dim, HIDDEN, n_steps=STEPS, generator=torch_stream(0, "weights"))
    with torch.no_grad():  # a new flow is the identity
        flow.net[-1].weight.normal_(std=0.1, generator=torch_stream(0, "perturbation"))
    torch.testing.assert_close(flow.log_prob(x), with_torchdiffeq(flow, x), rtol=1e-4, atol=1e-4)
    label = f"CNF in {dim} dimensions, {STEPS} steps"
    peer = "torchdiffeq, autograd trace"

    ours = torch.no_grad()(lambda: flow.log_prob(x))
    theirs = torch.no_grad()(lambda: with_torchdiffeq(flow, x.clone()))
    yield row(f"{label}, log_prob", peer, ours, theirs, repeats)
    yield row(
        f"{label}, step of training",
        peer,
        training_step(flow, flow.log_prob, x),
        training_step(flow, lambda x: with_torchdiffeq(flow, x.clone()), x),
        repeats,
    )


def line(repeats):
    """Samples of a map that is inverted numerically: to rounding error, and by the peer's bisection to 1e-6."""
    n, units = 100_000, 8
    flow, z = flows.Flow1D(units).double(), torch.randn(n, 1, generator=torch_stream(0, "z"), dtype=torch.float64)
    peer = zuko.transforms.MonotonicTransform(lambda x: flow.inverse(x.unsqueeze(-1))[0].squeeze(-1), bound=20.0)

    def ours():
        return flow.sample(n, generator=torch_stream(0, "z"))

    def theirs():
        with torch.no_grad():
            return peer.inv(z.squeeze(-1))

    torch.testing.assert_close(ours().squeeze(-1), theirs(), rtol=1e-5, atol=1e-5)
    return row(f"Flow1D({units}), {n:.0e} samples, float64", "zuko, bisection to 1e-6", ours, theirs, repeats)


def main() -> None:
    table = Table("problem", "peer", "our ms", "peer's ms", "peer's time / ours")
    for result in (real_nvp(2, 15), real_nvp(16, 15), *continuous(2, 5), *continuous(16, 2), line(5)):
        table.add_row(*result)
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
