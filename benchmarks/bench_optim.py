"""Optimization and training."""

import numpy as np
import pytest
import torch
from comparison import Close, Work
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from coursekit import nn, optim, shallow, training
from coursekit.random import torch_stream

WIDTH, STEPS, LR = 2, 20, 0.05


def ring(rng):
    """200 points on a ring of radius N(1, 0.2²) and 200 of N(0, 4I)."""
    r, angle = rng.normal(1, 0.2, 200), rng.uniform(0, 2 * np.pi, 200)
    inside = np.column_stack([r * np.cos(angle), r * np.sin(angle)])
    return np.concatenate([inside, 2 * rng.standard_normal((200, 2))]), np.repeat([1.0, 0.0], 200)


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden, self.out = torch.nn.Linear(2, WIDTH).double(), torch.nn.Linear(WIDTH, 1).double()

    def forward(self, X):
        return self.out(torch.relu(self.hidden(X)))[:, 0]


def parts_of(theta):
    """The parameters of `Network` in vectors laid out as in `shallow.ReluClassifier`."""
    theta = torch.from_numpy(theta)
    units = theta[..., : 3 * WIDTH].unflatten(-1, (WIDTH, 3))
    return {
        "hidden.weight": units[..., :2].clone(),
        "hidden.bias": units[..., 2].clone(),
        "out.weight": theta[..., None, 3 * WIDTH : -1].clone(),
        "out.bias": theta[..., -1:].clone(),
    }


def torch_loop(X, y, starts):
    """One run after the other; the final losses."""
    net, loss = Network(), torch.nn.BCEWithLogitsLoss()
    final = []
    for theta in starts:
        net.load_state_dict(parts_of(theta))
        optimizer = torch.optim.Adam(net.parameters(), LR)
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss(net(X), y).backward()
            optimizer.step()
        final.append(loss(net(X), y).item())
    return np.array(final)


def torch_vmap(X, y, starts):
    """All runs at once, as torch.func makes ensembles of networks; Adam goes coordinate by coordinate anyway."""
    net, loss = Network(), torch.nn.BCEWithLogitsLoss()
    stacked = {name: part.requires_grad_() for name, part in parts_of(starts).items()}

    def loss_of(parts):
        return loss(torch.func.functional_call(net, parts, (X,)), y)

    losses = torch.func.vmap(loss_of)
    optimizer = torch.optim.Adam(stacked.values(), LR)
    for _ in range(STEPS):
        optimizer.zero_grad()
        losses(stacked).sum().backward()
        optimizer.step()
    return losses(stacked).detach().numpy()


def bench_sweep(compare):
    def make(n):
        X, y = ring(np.random.default_rng(0))
        net = shallow.ReluClassifier(X, y, WIDTH)
        starts = net.init(n, rng=0)
        tensors = torch.from_numpy(X), torch.from_numpy(y)

        def ours():
            return net.loss(optim.minimize(net.gradient, starts, optim.adam(LR), STEPS, STEPS).x[-1])

        passed = optim.minimize(net.gradient, starts, optim.adam(LR), STEPS).x[:-1]

        def gradients():
            for theta in passed:
                net.gradient(theta)

        return Work(
            ours,
            {
                "torch.optim, one run after the other": lambda: torch_loop(*tensors, starts),
                "torch.func.vmap and torch.optim": lambda: torch_vmap(*tensors, starts),
            },
            gradients,
        )

    compare(
        f"{STEPS} Adam steps of a ReLU classifier of width {WIDTH} on 400 points, from many starts",
        make,
        (50, 100, 200, 400, 800),
        at=200,
        unit="runs",
        agree=Close(rtol=1e-8),
        floor="the gradients alone",
        growth="n",
    )


BATCH_SIZE = 64
MODELS = {
    "linear": lambda generator: torch.nn.Sequential(torch.nn.Flatten(), nn.MLP((784, 10), generator=generator)),
    "CNN (4, 8)": lambda generator: nn.CNN((4, 8), generator=generator),
}


@pytest.mark.parametrize(
    ("name", "sizes"),
    [("linear", (2000, 4000, 8000, 16_000)), ("CNN (4, 8)", (500, 1000, 2000, 4000, 8000))],
    ids=MODELS,
)
def bench_epoch(compare, name, sizes):
    """The peers show the model the same batches; what differs is how a batch comes together."""

    def start():
        model = MODELS[name](torch_stream(0, "weights"))
        return model, torch.optim.Adam(model.parameters(), lr=1e-3), torch_stream(0, "order")

    def steps(model, optimizer, batches):
        losses = []
        model.train()
        for images, labels in batches:
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return torch.stack(losses).double().numpy()

    def make(n):
        generator = torch_stream(0, "data")
        X, y = torch.rand((n, 1, 28, 28), generator=generator), torch.randint(10, (n,), generator=generator)
        samples = TensorDataset(X, y)
        ready = [(X[i : i + BATCH_SIZE], y[i : i + BATCH_SIZE]) for i in range(0, n, BATCH_SIZE)]

        def ours():
            model, optimizer, generator = start()
            options = {"epochs": 1, "batch_size": BATCH_SIZE, "generator": generator}
            return training.fit(model, training.cross_entropy, (X, y), optimizer, **options).loss

        def loader():
            model, optimizer, generator = start()
            # what shuffle=True makes, here with the generator of our order
            order = RandomSampler(samples, generator=generator)
            return steps(model, optimizer, DataLoader(samples, BATCH_SIZE, sampler=order))

        def batch_loader():
            model, optimizer, generator = start()
            order = BatchSampler(RandomSampler(samples, generator=generator), BATCH_SIZE, drop_last=False)
            return steps(model, optimizer, DataLoader(samples, batch_size=None, sampler=order))

        return Work(
            ours,
            {"DataLoader": loader, "DataLoader, a batch at once": batch_loader},
            floor=lambda: steps(*start()[:2], ready),
        )

    compare(
        f"one epoch of images of 28 × 28 pixels, batches of {BATCH_SIZE}, Adam: {name}",
        make,
        sizes,
        unit="samples",
        agree=Close(rtol=1e-5),
        floor="the steps, on batches that are ready",
        growth="n",
        kind="torch",
    )
