"""One training loop for the course: mini-batches from memory, a history, evaluation in evaluation mode."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from coursekit._validation import as_integer
from coursekit.progress import track

Loss = Callable[..., Tensor]


@dataclass(frozen=True, eq=False)
class History:
    """What `fit` recorded."""

    loss: Float[np.ndarray, " n_steps"]
    """Of each mini-batch, before its step."""
    metrics: dict[str, Float[np.ndarray, " n_records"]]
    """What `evaluate` returned, before the first epoch and after each."""
    gradient_norms: dict[str, Float[np.ndarray, " n_steps"]]
    """Euclidean norm of the gradient of each parameter tensor, by name; empty unless asked for."""
    ema: nn.Module | None
    """The model with exponentially averaged weights, in evaluation mode; None unless asked for."""


def fit(
    model: nn.Module,
    loss: Loss,
    data: tuple[Tensor, ...],
    optimizer: torch.optim.Optimizer,
    *,
    epochs: int,
    batch_size: int,
    schedule: Callable[[float], float] | None = None,
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
    ema_decay: float | None = None,
    gradient_norms: bool = False,
    generator: torch.Generator | None = None,
) -> History:
    """Minimise the mean of ``loss(model, *batch)`` over mini-batches; the model is changed in place.

    Every epoch goes through the data in a new random order; a last, smaller batch is left out if it has one sample
    only, which batch normalisation cannot take. The model is in training mode for steps and in evaluation mode,
    without gradients, for `evaluate`; its mode is put back at the end.

    Parameters
    ----------
    loss : callable
        ``loss(model, *batch)`` returns a scalar, e.g. `cross_entropy`.
    data : tensors of equal length, on the device of the model
        ``(X, y)``; batches are taken along the first axis.
    optimizer : torch optimizer of the model's parameters
    epochs : int ≥ 1
        A progress bar is shown when a person is watching.
    batch_size : int ≥ 1
    schedule : callable, optional
        Factor of the learning rates as a function of the fraction of steps done, in [0, 1).
    evaluate : callable, optional
        ``evaluate(model)`` returns named numbers for the history; it gets the averaged model if there is one.
    ema_decay : float in [0, 1), optional
        Keep an average of the weights, w̄ ← decay w̄ + (1 - decay) w after each step, from their start; buffers, such
        as the statistics of batch normalisation, are averaged with them.
    gradient_norms : bool
    generator : torch.Generator, optional
        Of the order of samples, on the CPU. With it and an initialised model the result is deterministic.

    Raises ValueError if the data do not have one length, or an argument is out of range; FloatingPointError, with the
    step, when the loss is not finite.
    Source: Chertkov §4.1.4.  Taught in: notebook 04_02.
    """
    n_samples = _common_length(data)
    batch_size = as_integer("batch_size", batch_size, low=1)
    epochs = as_integer("epochs", epochs, low=1)
    if ema_decay is not None and not 0 <= ema_decay < 1:
        raise ValueError(f"ema_decay must be in [0, 1), got {ema_decay}")
    average = None
    if ema_decay is not None:
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(ema_decay), use_buffers=True)
        average.update_parameters(model)  # the first call copies
    scheduler = None
    if schedule is not None:
        n_steps = epochs * len(_batches(n_samples, batch_size))
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: schedule(min(step, n_steps - 1) / n_steps)
        )
    losses: list[Tensor] = []
    norms: list[Tensor] = []
    metrics: list[dict[str, float]] = []

    def record() -> None:
        if evaluate is not None:
            with evaluation(model if average is None else average.module) as evaluated:
                metrics.append(evaluate(evaluated))

    with _modes_kept(model):
        record()
        for _ in track(range(epochs), "training"):
            model.train()
            first = len(losses)
            order = torch.randperm(n_samples, generator=generator)
            for batch in _batches(n_samples, batch_size):
                index = order[batch].to(data[0].device)
                optimizer.zero_grad()
                value = loss(model, *(tensor[index] for tensor in data))
                if value.ndim:
                    raise ValueError(f"loss must return a scalar, got shape {tuple(value.shape)}")
                value.backward()
                losses.append(value.detach())
                if gradient_norms:
                    norms.append(torch.stack(list(_norms(model).values())))
                optimizer.step()
                if average is not None:
                    average.update_parameters(model)
                if scheduler is not None:
                    scheduler.step()
            _check_losses(losses, first)
            record()
    table = torch.stack(norms).cpu().numpy().T if norms else ()
    return History(
        torch.stack(losses).cpu().double().numpy(),
        {name: np.array([row[name] for row in metrics], dtype=float) for name in (metrics[0] if metrics else {})},
        dict(zip(_norms(model), table, strict=True)) if norms else {},
        None if average is None else average.module.eval(),
    )


def cosine(progress: float) -> float:
    """Factor ½(1 + cos π progress) of the learning rate, from 1 down to 0: a `schedule` for `fit`.

    Source: Loshchilov and Hutter, ICLR (2017).  Taught in: notebook 04_02.
    """
    return 0.5 * (1 + math.cos(math.pi * progress))


def cross_entropy(model: nn.Module, X: Tensor, y: Int[Tensor, " n"]) -> Float[Tensor, ""]:
    """Mean of -log softmax(model(X))_y, in nats: the loss of a classifier, for `fit`.

    Raises ValueError if a label is not an integer between 0 and the number of classes less one.
    Source: Chertkov §4.1.4.  Taught in: notebook 04_02.
    """
    logits = model(X)
    _check_labels(y, logits)
    return nn.functional.cross_entropy(logits, y.long())


def predict(model: nn.Module, X: Tensor, batch_size: int = 500) -> Tensor:
    """model(X) in evaluation mode, without gradients, in batches; the model's mode is left as it was."""
    batch_size = as_integer("batch_size", batch_size, low=1)
    if len(X) == 0:
        raise ValueError("X must not be empty")
    with evaluation(model):
        return torch.cat([model(part) for part in X.split(batch_size)])


def classification_metrics(X: Tensor, y: Int[Tensor, " n"]) -> Callable[[nn.Module], dict[str, float]]:
    """For `fit`: a function that gives a model's mean cross-entropy ("loss", nats) and "accuracy" on (X, y)."""
    _common_length((X, y))

    def evaluate(model: nn.Module) -> dict[str, float]:
        logits = predict(model, X)
        _check_labels(y, logits)
        correct = logits.argmax(dim=1) == y
        return {
            "loss": float(nn.functional.cross_entropy(logits, y.long())),
            "accuracy": float(correct.double().mean()),
        }

    return evaluate


def gradient_norms(model: nn.Module, loss: Loss, *batch: Tensor) -> dict[str, float]:
    """Euclidean norm of ∂loss(model, *batch)/∂w for each parameter tensor w, by name.

    The model's own gradients (``.grad``) are left alone. In training mode the statistics of batch normalisation see
    the batch. Source: Chertkov §4.2.1 (Fig. 4.7).  Taught in: notebook 04_03.
    """
    parameters = dict(model.named_parameters())
    learned = {name: p for name, p in parameters.items() if p.requires_grad}
    gradients = torch.autograd.grad(loss(model, *batch), list(learned.values()), materialize_grads=True)
    norms = {name: float(gradient.norm(dtype=torch.float64)) for name, gradient in zip(learned, gradients, strict=True)}
    return {name: norms.get(name, 0.0) for name in parameters}  # a frozen parameter has none


@contextmanager
def evaluation(model: nn.Module) -> Iterator[nn.Module]:
    """Evaluation mode without gradients; the mode of every module is put back on leaving, also after an error."""
    with _modes_kept(model), torch.no_grad():
        yield model.eval()


@contextmanager
def _modes_kept(model) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _norms(model) -> dict[str, Tensor]:
    """Of the gradients that a backward pass has left."""
    return {
        name: p.new_zeros((), dtype=torch.float64) if p.grad is None else p.grad.detach().norm(dtype=torch.float64)
        for name, p in model.named_parameters()
    }


def _batches(n_samples, batch_size) -> list[slice]:
    starts = range(0, n_samples, batch_size)
    slices = [slice(start, start + batch_size) for start in starts]
    # batch normalisation has no variance for a single sample
    return slices[:-1] if n_samples % batch_size == 1 and len(slices) > 1 else slices


def _common_length(data) -> int:
    lengths = [len(tensor) for tensor in data]
    if not lengths or len(set(lengths)) > 1 or lengths[0] == 0:
        raise ValueError(f"data must be tensors of one length, at least 1, got lengths {lengths}")
    return lengths[0]


def _check_labels(y, logits) -> None:
    n_classes = logits.shape[-1]
    if y.is_floating_point() or y.shape != logits.shape[:-1]:
        raise ValueError(f"y must hold {tuple(logits.shape[:-1])} integer labels, got {y.dtype} of {tuple(y.shape)}")
    if y.min() < 0 or y.max() >= n_classes:
        raise ValueError(f"labels must lie in 0..{n_classes - 1}, got {int(y.min())}..{int(y.max())}")


def _check_losses(losses, first) -> None:
    """Of the steps from `first` on."""
    finite = torch.isfinite(torch.stack(losses[first:]))
    if not finite.all():
        step = first + int(torch.argmin(finite.int()))
        raise FloatingPointError(f"the loss is not finite at step {step}: {float(losses[step])}")
