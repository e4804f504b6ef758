"""One epoch of `fit` on the bundled digits against the loop that a tutorial writes, with torch's DataLoader.

Both run one thread in single precision, are timed in turn in one run, and must give the same losses. What differs is
how a batch comes together: one indexing of a tensor, against a list of single samples that is stacked.
"""

import os
import statistics
import time

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # read when numpy and torch are imported

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from coursekit import data, nn, training
from coursekit.random import torch_stream

BATCH_SIZE = 64
REPEATS = 7
MODELS = {
    "linear": lambda generator: torch.nn.Sequential(torch.nn.Flatten(), nn.MLP((784, 10), generator=generator)),
    "CNN (4, 8)": lambda generator: nn.CNN((4, 8), generator=generator),
    "CNN (16, 32)": lambda generator: nn.CNN((16, 32), generator=generator),
}


def start(build):
    model = build(torch_stream(0, "weights"))
    return model, torch.optim.Adam(model.parameters(), lr=1e-3), torch_stream(0, "order")


def ours(X, y, build):
    model, optimizer, generator = start(build)
    loss, batches = training.cross_entropy, {"batch_size": BATCH_SIZE, "generator": generator}
    return training.fit(model, loss, (X, y), optimizer, epochs=1, **batches).loss


def theirs(X, y, build):
    model, optimizer, generator = start(build)
    samples = TensorDataset(X, y)
    # what shuffle=True makes, here with the generator of our order
    loader = DataLoader(samples, BATCH_SIZE, sampler=RandomSampler(samples, generator=generator), num_workers=0)
    losses = []
    model.train()
    for images, labels in loader:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses).double().numpy()


def timed(call, *arguments):
    begin = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - begin


def main() -> None:
    torch.set_num_threads(1)
    digits = data.mnist()
    X, y = torch.from_numpy(digits.X_train).float(), torch.from_numpy(digits.y_train)
    table = Table("model", "multiplications a sample", "ours, s", "DataLoader, s", "ratio")
    for name, build in MODELS.items():
        np.testing.assert_allclose(ours(X, y, build), theirs(X, y, build), rtol=1e-5)  # warm up, both
        runs = [(timed(ours, X, y, build), timed(theirs, X, y, build)) for _ in range(REPEATS)]
        seconds = [statistics.median(run) for run in zip(*runs, strict=True)]
        ratio = statistics.median(mine / other for mine, other in runs)
        macs = nn.model_cost(build(None), X.shape[1:]).macs
        table.add_row(name, f"{macs:,}", *(f"{s:.3f}" for s in seconds), f"{ratio:.2f}")
    console = Console()
    console.print(f"An epoch on {len(X)} digits, batches of {BATCH_SIZE}, Adam: median of {REPEATS} runs, in turn")
    console.print(table)


if __name__ == "__main__":
    main()
