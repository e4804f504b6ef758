"""The small architectures of the course, as torch modules.

Each takes a `generator`: its weights then follow from the generator alone (see `initialize`), whatever torch's global
state. Parameters are made in torch's default dtype on the CPU; ``.to(device)`` moves a module as usual.
"""

import itertools
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from coursekit._validation import as_integer, as_number
from coursekit.training import evaluation


def initialize(model: nn.Module, gain: float = 3**-0.5, generator: torch.Generator | None = None) -> nn.Module:
    """Draw all weights anew, uniform with variance gain²/n_in, and biases uniform in ±1/√n_in; return the model.

    n_in is the number of inputs that one output sums. gain² = 1/3 is torch's default law; gain² = 2 keeps the size of
    signals through ReLU layers (He). Batch normalisation is reset to γ = 1, β = 0 and empty statistics.

    Raises ValueError if gain is negative, or for a layer with parameters that is not linear, convolutional or batch
    normalisation.
    Source: He et al., ICCV (2015).  Taught in: notebook 04_03.
    """
    gain = as_number("gain", gain, low=0)
    for name, layer in model.named_modules():
        if isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d)):
            n_in = layer.weight[0].numel()
            bound = gain * (3 / n_in) ** 0.5
            with torch.no_grad():
                layer.weight.uniform_(-bound, bound, generator=generator)
                if layer.bias is not None:
                    layer.bias.uniform_(-(n_in**-0.5), n_in**-0.5, generator=generator)
        elif isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            layer.reset_parameters()
        elif any(True for _ in layer.parameters(recurse=False)):
            raise ValueError(f"initialize knows no law for layer {name!r}, {type(layer).__name__}")
    return model


class _Layers(nn.Sequential):
    """A Sequential with another constructor: a slice of it is a plain Sequential, with the names of the layers."""

    def __getitem__(self, index):
        return nn.Sequential(OrderedDict(self.named_children()))[index]


class MLP(_Layers):
    """Fully connected network: linear layers of the given sizes with an activation between them.

    Parameters
    ----------
    sizes : two or more ints ≥ 1
        ``(2, 64, 64, 2)``: inputs, two hidden layers, outputs.
    activation : module class
    generator : torch.Generator, optional

    Maps (..., sizes[0]) to (..., sizes[-1]).  Source: Chertkov §4.1.2.  Taught in: notebook 04_04.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        activation: Callable[[], nn.Module] = nn.Tanh,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        if len(sizes) < 2:
            raise ValueError(f"sizes must name at least inputs and outputs, got {tuple(sizes)}")
        sizes = [as_integer(f"sizes[{i}]", size, low=1) for i, size in enumerate(sizes)]
        layers: list[nn.Module] = []
        for n_in, n_out in itertools.pairwise(sizes):
            layers += [nn.Linear(n_in, n_out), activation()]
        super().__init__(*layers[:-1])
        _draw(self, generator)


class TimeMLP(nn.Module):
    """Fully connected network of points and a time: the time comes in as t, sin ωt and cos ωt, ω = 1, 2, 4, ….

    Parameters
    ----------
    dim : int ≥ 1
    hidden : sizes of the hidden layers
    n_frequencies : int ≥ 1
    activation : module class
    generator : torch.Generator, optional

    Maps x (n, dim) and t (n,), or one time for all, to (n, dim); a new network gives zero.
    Raises ValueError if a size is out of range.
    Source: Vaswani et al., NeurIPS (2017), for the frequencies; Cao §5.1.  Taught in: notebook 09_01c.
    """

    def __init__(
        self,
        dim: int,
        hidden: Sequence[int],
        *,
        n_frequencies: int = 4,
        activation: Callable[[], nn.Module] = nn.SiLU,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.n_frequencies = as_integer("n_frequencies", n_frequencies, low=1)
        dim = as_integer("dim", dim, low=1)
        self.net = MLP(((dim + 1) * (1 + 2 * n_frequencies), *hidden, dim), activation, generator=generator)
        _silence(self.net[-1])

    def forward(self, x: Float[Tensor, "n dim"], t: Float[Tensor, " n"] | float) -> Float[Tensor, "n dim"]:
        t = torch.as_tensor(t, dtype=x.dtype, device=x.device).expand(len(x)).unsqueeze(-1)
        inputs = torch.cat([x, t], dim=-1)
        waves = [2**k * inputs for k in range(self.n_frequencies)]
        return self.net(torch.cat([inputs, *(f(wave) for wave in waves for f in (torch.sin, torch.cos))], dim=-1))


class CNN(_Layers):
    """Two convolutions with ReLU and 2×2 max-pooling, then two linear layers: images (n, c, h, w) to logits.

    Layers are named conv1, relu1, pool1, conv2, relu2, pool2, flatten, fc1, relu3, fc2; with `batch_norm` there are
    norm1 and norm2 after the convolutions, which then need no bias. Padding keeps the size of the image.

    Parameters
    ----------
    channels : two ints ≥ 1
    kernel_size : odd int ≥ 1
    hidden : int ≥ 1
    n_classes : int ≥ 2
    in_shape : (c, h, w), h and w at least 4
    batch_norm : bool
    generator : torch.Generator, optional

    Raises ValueError if a size is out of range, or for images of another shape.
    Source: Chertkov §4.1.4.  Taught in: notebook 04_02.
    """

    def __init__(
        self,
        channels: tuple[int, int] = (16, 32),
        kernel_size: int = 3,
        *,
        hidden: int = 128,
        n_classes: int = 10,
        in_shape: tuple[int, int, int] = (1, 28, 28),
        batch_norm: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        if len(channels) != 2 or len(in_shape) != 3:
            raise ValueError(f"channels must be two and in_shape three numbers, got {channels} and {in_shape}")
        first, second = (as_integer(f"channels[{i}]", c, low=1) for i, c in enumerate(channels))
        hidden, n_classes = as_integer("hidden", hidden, low=1), as_integer("n_classes", n_classes, low=2)
        kernel_size = as_integer("kernel_size", kernel_size, low=1)
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, so that padding keeps the image's size, got {kernel_size}")
        c, h, w = (as_integer(f"in_shape[{i}]", size, low=(1, 4, 4)[i]) for i, size in enumerate(in_shape))
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for i, (n_in, n_out) in enumerate([(c, first), (first, second)], start=1):
            layers[f"conv{i}"] = nn.Conv2d(n_in, n_out, kernel_size, padding="same", bias=not batch_norm)
            if batch_norm:
                layers[f"norm{i}"] = nn.BatchNorm2d(n_out)
            layers[f"relu{i}"] = nn.ReLU()
            layers[f"pool{i}"] = nn.MaxPool2d(2)
        layers["flatten"] = nn.Flatten()
        layers["fc1"] = nn.Linear(second * (h // 4) * (w // 4), hidden)
        layers["relu3"] = nn.ReLU()
        layers["fc2"] = nn.Linear(hidden, n_classes)
        super().__init__(layers)
        self.in_shape = (c, h, w)
        _draw(self, generator)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        _check_images(x, self.in_shape)
        return super().forward(x)


class ResidualMLP(nn.Module):
    """ReLU(Linear), then blocks h ↦ ReLU(h + g(h)) with g = Linear–BN–ReLU–Linear–BN, then Linear: (n, d) to logits.

    Parameters
    ----------
    in_dim, n_classes, width : ints ≥ 1
    n_blocks : int ≥ 0
    batch_norm : bool
        Without, g = Linear–ReLU–Linear.
    skip : bool
        Without, blocks are the plain h ↦ ReLU(g(h)).
    generator : torch.Generator, optional

    Raises ValueError if a size is out of range.
    Source: He et al., CVPR (2016); Chertkov §4.2.1 (Example 4.2.1).  Taught in: notebook 04_03.
    """

    def __init__(
        self,
        in_dim: int,
        n_classes: int,
        *,
        width: int = 64,
        n_blocks: int = 4,
        batch_norm: bool = True,
        skip: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        width = as_integer("width", width, low=1)
        self.fc_in = nn.Linear(as_integer("in_dim", in_dim, low=1), width)
        self.blocks = nn.ModuleList(
            ResidualBlock(
                _without_holes(
                    nn.Linear(width, width),
                    nn.BatchNorm1d(width) if batch_norm else None,
                    nn.ReLU(),
                    nn.Linear(width, width),
                    nn.BatchNorm1d(width) if batch_norm else None,
                ),
                skip=skip,
            )
            for _ in range(as_integer("n_blocks", n_blocks, low=0))
        )
        self.fc_out = nn.Linear(width, as_integer("n_classes", n_classes, low=1))
        _draw(self, generator)

    def forward(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n classes"]:
        h = torch.relu(self.fc_in(x))
        for block in self.blocks:
            h = block(h)
        return self.fc_out(h)


class ResidualBlock(nn.Module):
    """h ↦ ReLU(P h + g(h)), P the identity unless a projection is given; without skip the plain ReLU(g(h)).

    Source: He et al., CVPR (2016); Chertkov §4.2.1.  Taught in: notebook 04_03.
    """

    def __init__(self, g: nn.Module, *, projection: nn.Module | None = None, skip: bool = True) -> None:
        super().__init__()
        self.g = g
        self.projection = projection if skip and projection is not None else nn.Identity()
        self.skip = skip

    def forward(self, h: Tensor) -> Tensor:
        return torch.relu(self.projection(h) + self.g(h) if self.skip else self.g(h))


class ResNet(nn.Module):
    """Residual network for small images: 3×3 convolution of stride 2, blocks, global average, Linear; to logits.

    Each width makes one stage of `n_blocks` blocks, g = Conv3×3–BN–ReLU–Conv3×3–BN; from the second stage on the first
    block halves the image, and its skip connection is a 1×1 convolution of stride 2.

    Parameters
    ----------
    widths : ints ≥ 1
        Channels of the stages.
    n_blocks, in_channels : ints ≥ 1
    n_classes : int ≥ 2
    skip : bool
    generator : torch.Generator, optional

    Maps (n, in_channels, h, w) to (n, n_classes); raises ValueError for images of another number of channels.
    Source: He et al., CVPR (2016); Chertkov §4.2.1.  Taught in: notebook 04_03.
    """

    def __init__(
        self,
        widths: Sequence[int] = (16, 32, 64),
        n_blocks: int = 1,
        *,
        n_classes: int = 10,
        in_channels: int = 1,
        skip: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        widths = [as_integer(f"widths[{i}]", width, low=1) for i, width in enumerate(widths)]
        if not widths:
            raise ValueError("widths must name at least one stage, got none")
        n_blocks = as_integer("n_blocks", n_blocks, low=1)
        self.in_channels = as_integer("in_channels", in_channels, low=1)
        self.stem = nn.Sequential(*_convolution(in_channels, widths[0], stride=2), nn.ReLU())
        blocks = []
        n_in = widths[0]
        for stage, width in enumerate(widths):
            for block in range(n_blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                g = nn.Sequential(*_convolution(n_in, width, stride=stride), nn.ReLU(), *_convolution(width, width))
                changes = stride > 1 or n_in != width
                projection = nn.Sequential(*_convolution(n_in, width, 1, stride=stride)) if changes else None
                blocks.append(ResidualBlock(g, projection=projection, skip=skip))
                n_in = width
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(n_in, as_integer("n_classes", n_classes, low=2))
        _draw(self, generator)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        _check_images(x, (self.in_channels, None, None))
        return self.fc(self.blocks(self.stem(x)).mean(dim=(2, 3)))


class UNet(nn.Module):
    """U-Net: images (n, c, h, w) and a number t for each, such as a log noise level, to images of the same shape.

    Cells of patch × patch pixels become channels. On the way down each level has one block, then a convolution of
    stride 2, and the lowest level a block and two dense layers that see all of it; on the way up the image is
    repeated 2 × 2, joined with what the same level had on the way down, and goes through a block. A block is
    h ↦ P h + Conv3×3 SiLU((1 + a) Conv3×3 SiLU h + b), with a, b linear in an embedding of t: sines and cosines, then
    two linear layers. A new network gives zero. There is no normalisation: at this size it only costs time.

    Parameters
    ----------
    channels : ints ≥ 1
        Of the levels, from the finest.
    in_shape : (c, h, w), h and w multiples of patch
    patch : int ≥ 1
    embedding : int ≥ 1
    bottleneck : int ≥ 0
        Width of the dense layers; 0 for none, and then images may have any size h, w that patch divides.
    generator : torch.Generator, optional

    Raises ValueError if a size is out of range, or for images of another shape.
    Source: Ronneberger et al., MICCAI (2015); with time: Song et al., ICLR (2021).  Taught in: notebook 09_01d.
    """

    def __init__(
        self,
        channels: Sequence[int] = (32, 64),
        in_shape: tuple[int, int, int] = (1, 28, 28),
        patch: int = 2,
        embedding: int = 64,
        bottleneck: int = 256,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        channels = [as_integer(f"channels[{i}]", c, low=1) for i, c in enumerate(channels)]
        if not channels or len(in_shape) != 3:
            raise ValueError(f"there must be channels, and three numbers in in_shape, got {channels} and {in_shape}")
        c, h, w = (as_integer(f"in_shape[{i}]", size, low=1) for i, size in enumerate(in_shape))
        self.patch, embedding = as_integer("patch", patch, low=1), as_integer("embedding", embedding, low=1)
        bottleneck = as_integer("bottleneck", bottleneck, low=0)
        if h % patch or w % patch:
            raise ValueError(f"height and width must be multiples of patch = {patch}, got {h} and {w}")
        self.in_shape = (c, h, w) if bottleneck else (c, None, None)
        self.embed = nn.Sequential(nn.Linear(32, embedding), nn.SiLU(), nn.Linear(embedding, embedding), nn.SiLU())
        self.stem = nn.Conv2d(c * patch**2, channels[0], 3, padding=1)
        self.down, self.shrink, self.widen, self.up = (nn.ModuleList() for _ in range(4))
        for fine, coarse in itertools.pairwise(channels):
            self.down.append(_TimeBlock(fine, fine, embedding))
            self.shrink.append(nn.Conv2d(fine, coarse, 3, stride=2, padding=1))
            self.widen.append(nn.Conv2d(coarse, fine, 1))
            self.up.append(_TimeBlock(2 * fine, fine, embedding))
        self.lowest = _TimeBlock(channels[-1], channels[-1], embedding)
        scale = patch * 2 ** len(self.down)
        shape = (8, math.ceil(h / scale), math.ceil(w / scale))  # 8 channels for the dense layers
        self.dense = _TimeDense(channels[-1], shape, bottleneck, embedding) if bottleneck else None
        self.out = nn.Conv2d(channels[0], c * patch**2, 3, padding=1)
        _draw(self, generator)
        _silence(self.out)
        nn.utils.convert_conv2d_weight_memory_format(self, torch.channels_last)  # convolutions are faster so

    def forward(self, x: Float[Tensor, "n c h w"], t: Float[Tensor, " n"]) -> Float[Tensor, "n c h w"]:
        _check_images(x, self.in_shape)
        phase = t[:, None] * 2.0 ** torch.linspace(-2, 3, 16, dtype=t.dtype, device=t.device)
        e = self.embed(torch.cat([phase.sin(), phase.cos()], dim=1))
        h = self.stem(nn.functional.pixel_unshuffle(x, self.patch).contiguous(memory_format=torch.channels_last))
        kept = []
        for block, shrink in zip(self.down, self.shrink, strict=True):
            kept.append(block(h, e))
            h = shrink(kept[-1])
        h = self.lowest(h, e)
        if self.dense is not None:
            h = h + self.dense(h, e)
        for widen, block in zip(reversed(self.widen), reversed(self.up), strict=True):
            same = kept.pop()
            h = nn.functional.interpolate(widen(h), size=same.shape[2:])  # an odd size loses its last half cell
            h = block(torch.cat([h, same], dim=1), e)
        return nn.functional.pixel_shuffle(self.out(nn.functional.silu(h)), self.patch).contiguous()


class _TimeBlock(nn.Module):
    """h ↦ P h + Conv SiLU((1 + a) Conv SiLU h + b), with a, b linear in the embedding."""

    def __init__(self, n_in, n_out, embedding):
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, padding=1)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1)
        self.modulate = nn.Linear(embedding, 2 * n_out)
        self.projection = nn.Conv2d(n_in, n_out, 1) if n_in != n_out else nn.Identity()

    def forward(self, h, e):
        a, b = self.modulate(e)[:, :, None, None].chunk(2, dim=1)
        g = torch.addcmul(b, 1 + a, self.conv1(nn.functional.silu(h)))
        return self.projection(h) + self.conv2(nn.functional.silu(g))


class _TimeDense(nn.Module):
    """All of a small image at once: few channels, flattened, two dense hidden layers and back."""

    def __init__(self, channels, shape, width, embedding):
        super().__init__()
        self.shape, size = shape, math.prod(shape)
        self.reduce, self.restore = nn.Conv2d(channels, shape[0], 1), nn.Conv2d(shape[0], channels, 1)
        self.fc1, self.fc2, self.fc3 = nn.Linear(size, width), nn.Linear(width, width), nn.Linear(width, size)
        self.shift = nn.Linear(embedding, width)

    def forward(self, h, e):
        z = nn.functional.silu(self.fc1(self.reduce(nn.functional.silu(h)).flatten(1)) + self.shift(e))
        return self.restore(self.fc3(nn.functional.silu(self.fc2(z))).unflatten(1, self.shape))


@dataclass(frozen=True)
class ModelCost:
    """What a model needs: numbers to learn, and multiplications a sample."""

    parameters: int
    macs: int
    """Multiply–accumulate operations of matrix products and convolutions, for one sample."""


def model_cost(model: nn.Module, in_shape: Sequence[int]) -> ModelCost:
    """Parameters and multiply–accumulate operations a sample, counted by running shapes through the model.

    Parameters
    ----------
    in_shape : shape of one sample, without the axis of samples

    Source: Chertkov §4.1.4.  Taught in: notebook 04_02.
    """
    parameters = {name: p.to("meta") for name, p in (*model.named_parameters(), *model.named_buffers())}
    # evaluation: batch normalisation of a single sample
    with evaluation(model), FlopCounterMode(display=False) as counter:
        torch.func.functional_call(model, parameters, torch.empty(1, *in_shape, device="meta"))
    return ModelCost(sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2)


def _draw(model, generator):
    if generator is not None:
        initialize(model, generator=generator)


def _silence(layer):
    """Its output is zero until it has learned something."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


def _without_holes(*layers):
    return nn.Sequential(*(layer for layer in layers if layer is not None))


def _convolution(n_in, n_out, kernel_size=3, *, stride=1):
    """A convolution without bias (the normalisation would remove it) and its batch normalisation."""
    return nn.Conv2d(n_in, n_out, kernel_size, stride, padding=kernel_size // 2, bias=False), nn.BatchNorm2d(n_out)


def _check_images(x, shape):
    if x.ndim != 4 or any(want is not None and want != got for want, got in zip(shape, x.shape[1:], strict=True)):
        expected = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"images must have shape (n, {expected}), got {tuple(x.shape)}")
