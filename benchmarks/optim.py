"""optim and shallow against torch: 100 seeds × 2000 Adam steps of a small classifier (make bench)."""

import time

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from coursekit import optim, shallow

SEEDS, STEPS, WIDTH, LR, SAMPLE = 100, 2000, 2, 0.05, 3


def ring(rng):
    """200 points on a ring of radius N(1, 0.2²) and 200 of N(0, 4I)."""
    r, angle = rng.normal(1, 0.2, 200), rng.uniform(0, 2 * np.pi, 200)
    inside = np.column_stack([r * np.cos(angle), r * np.sin(angle)])
    return np.concatenate([inside, 2 * rng.standard_normal((200, 2))]), np.repeat([1.0, 0.0], 200)


def with_torch(X, y, theta):
    """The usual loop, from the start theta; the final loss."""
    layers = torch.nn.Sequential(torch.nn.Linear(2, WIDTH), torch.nn.ReLU(), torch.nn.Linear(WIDTH, 1)).double()
    units = torch.from_numpy(theta[: 3 * WIDTH].reshape(WIDTH, 3))
    with torch.no_grad():
        layers[0].weight.copy_(units[:, :2])
        layers[0].bias.copy_(units[:, 2])
        layers[2].weight.copy_(torch.from_numpy(theta[None, 3 * WIDTH : -1]))
        layers[2].bias.fill_(theta[-1])
    criterion, optimizer = torch.nn.BCEWithLogitsLoss(), torch.optim.Adam(layers.parameters(), LR)
    for _ in range(STEPS):
        optimizer.zero_grad()
        criterion(layers(X)[:, 0], y).backward()
        optimizer.step()
    return criterion(layers(X)[:, 0], y).item()


def timed(call):
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def main() -> None:
    torch.set_num_threads(1)
    X, y = ring(np.random.default_rng(0))
    net = shallow.ReluClassifier(X, y, WIDTH)
    starts = net.init(SEEDS, rng=0)

    def train(theta):
        return net.loss(optim.minimize(net.gradient, theta, optim.adam(LR), STEPS, STEPS).x[-1])

    tensors = torch.from_numpy(X), torch.from_numpy(y)
    train(starts[0])  # warm up, both
    with_torch(*tensors, starts[0])
    batch, losses = timed(lambda: train(starts))
    alone, one_by_one = timed(lambda: [train(start) for start in starts[:SAMPLE]])
    theirs, their_losses = timed(lambda: [with_torch(*tensors, start) for start in starts[:SAMPLE]])
    table = Table(f"{SEEDS} seeds", "seeds timed", "seconds for all", "ratio")
    for name, runs, seconds in (
        ("ours, all seeds in one batch", SEEDS, batch),
        ("ours, one seed at a time", SAMPLE, alone * SEEDS / SAMPLE),
        ("torch, one seed at a time", SAMPLE, theirs * SEEDS / SAMPLE),
    ):
        table.add_row(name, str(runs), f"{seconds:.1f}", f"{seconds / batch:.1f}")
    console = Console()
    console.print(f"ReLU classifier of width {WIDTH} on {len(X)} points, {STEPS} Adam steps on the full batch, float64")
    console.print(table)
    console.print("One seed at a time is linear in the number of runs: a few are timed, and scaled to all.")
    one, peer = (np.abs(np.subtract(other, losses[:SAMPLE])).max() for other in (one_by_one, their_losses))
    console.print(f"Largest difference of final losses: {one:.0e} (ours one at a time), {peer:.0e} (torch).")


if __name__ == "__main__":
    main()
