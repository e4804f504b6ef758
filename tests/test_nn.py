import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from coursekit import nn
from coursekit.data import import_torchvision

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")),
]
ARCHITECTURES = {
    "mlp": (lambda **options: nn.MLP((3, 8, 5, 2), **options), (3,)),
    "cnn": (lambda **options: nn.CNN((2, 3), hidden=4, in_shape=(1, 8, 9), **options), (1, 8, 9)),
    "cnn-bn": (lambda **options: nn.CNN((2, 3), hidden=4, in_shape=(1, 8, 9), batch_norm=True, **options), (1, 8, 9)),
    "residual": (lambda **options: nn.ResidualMLP(3, 2, width=6, n_blocks=2, **options), (3,)),
    "plain": (
        lambda **options: nn.ResidualMLP(3, 2, width=6, n_blocks=2, batch_norm=False, skip=False, **options),
        (3,),
    ),
    "resnet": (lambda **options: nn.ResNet((2, 3), 2, **options), (1, 8, 9)),
}
architectures = pytest.mark.parametrize(("build", "shape"), ARCHITECTURES.values(), ids=ARCHITECTURES)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def gaussian(seed, *shape, dtype=torch.float32):
    return torch.randn(*shape, generator=seeded(seed), dtype=dtype)


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


class TestInitialize:
    @pytest.mark.parametrize(
        "layer",
        [
            torch.nn.Linear(30, 1500),
            torch.nn.Conv1d(6, 1500, 5),
            torch.nn.Conv2d(4, 1500, 3),
            torch.nn.Conv2d(8, 1500, 3, groups=2),
        ],
    )
    @pytest.mark.parametrize("gain", [3**-0.5, 2**0.5])
    def test_law(self, layer, gain):
        # inputs one output sums: 30; 6·5 = 30; 4·9 = 36; of two groups of 4 channels 4·9 = 36
        n_in = 30 if isinstance(layer, (torch.nn.Linear, torch.nn.Conv1d)) else 36
        assert nn.initialize(layer, gain, seeded(0)) is layer
        for values, variance in ((layer.weight, gain**2 / n_in), (layer.bias, 1 / (3 * n_in))):
            values = values.detach().double().flatten()
            # uniform on ±b has variance b²/3, and E w⁴ = b⁴/5: w² has standard deviation √0.8 of its mean
            assert values.abs().max() <= (3 * variance) ** 0.5 * (1 + 1e-6)
            n = len(values)
            assert abs(values.mean()) < 5 * (variance / n) ** 0.5
            assert abs((values**2).mean() / variance - 1) < 5 * (0.8 / n) ** 0.5
            # E w⁴ = b⁴/5 = 9/5 variance² tells the uniform law from others, E w⁸ = b⁸/9 = 9 variance⁴ gives its error
            assert abs((values**4).mean() / variance**2 - 9 / 5) < 5 * (9 - 81 / 25) ** 0.5 / n**0.5

    @pytest.mark.parametrize("layer", [torch.nn.Linear(7, 4), torch.nn.Conv2d(3, 4, 5), torch.nn.Conv1d(3, 4, 2)])
    def test_default_is_torchs_law(self, layer):
        nn.initialize(layer, generator=seeded(1))
        generator = seeded(1)
        theirs = torch.nn.init.kaiming_uniform_(torch.empty_like(layer.weight), 5**0.5, generator=generator)
        torch.testing.assert_close(layer.weight.detach(), theirs)
        bound = 1 / math.sqrt(theirs[0].numel())
        bias = torch.empty_like(layer.bias).uniform_(-bound, bound, generator=generator)
        torch.testing.assert_close(layer.bias.detach(), bias.detach())
        # He's gain √2 is torch's for relu
        nn.initialize(layer, 2**0.5, seeded(1))
        theirs = torch.nn.init.kaiming_uniform_(
            torch.empty_like(layer.weight), nonlinearity="relu", generator=seeded(1)
        )
        torch.testing.assert_close(layer.weight.detach(), theirs.detach())

    def test_he_gain_keeps_the_size_of_signals(self):
        # E relu(z)² = ½ E z², and z has variance gain² mean x²: without biases gain² = 2 keeps the mean square in
        # expectation. E relu(z)⁴ = 3/2 (E z²)², so a layer of n units adds 6 - 1 = 5, over n, to the relative variance
        layers = [layer for _ in range(4) for layer in (torch.nn.Linear(1500, 1500, False), torch.nn.ReLU())]
        net = nn.initialize(torch.nn.Sequential(*layers), 2**0.5, seeded(0))
        x = gaussian(0, 1, 1500)
        with torch.no_grad():
            assert abs((net(x) ** 2).mean() / (x**2).mean() - 1) < 5 * (4 * 5 / 1500) ** 0.5

    def test_zero_gain(self):
        layer = nn.initialize(torch.nn.Linear(3, 4), 0.0)
        assert (layer.weight == 0).all() and (layer.bias != 0).any()

    @pytest.mark.parametrize("norm", [torch.nn.BatchNorm1d(3), torch.nn.BatchNorm2d(3)])
    def test_resets_batch_normalisation(self, norm):
        norm(1 + 2 * gaussian(0, *((20, 3) if isinstance(norm, torch.nn.BatchNorm1d) else (4, 3, 5, 5))))
        with torch.no_grad():
            norm.weight += 1
            norm.bias += 1
        assert_same(weights(nn.initialize(norm)), weights(type(norm)(3)))

    @architectures
    def test_follows_from_the_generator_alone(self, build, shape):
        models = []
        for state in (0, 1):
            torch.manual_seed(state)
            models.append(build(generator=seeded(7)))
        assert_same(weights(models[0]), weights(models[1]))
        other = weights(build(generator=seeded(8)))
        assert any(not torch.equal(tensor, other[name]) for name, tensor in weights(models[0]).items())
        # the same as drawing anew, whatever the model was
        other = weights(models[0])
        assert_same(weights(nn.initialize(build(), generator=seeded(7))), other)
        for name, layer in models[0].named_modules():
            if isinstance(layer, (torch.nn.Linear, torch.nn.Conv2d)):
                bound = 1 / math.sqrt(layer.weight[0].numel())
                assert other[f"{name}.weight"].abs().max() <= bound * (1 + 1e-6)

    @architectures
    def test_without_a_generator_torchs_state_decides(self, build, shape):
        models = []
        for state in (0, 0, 1):
            torch.manual_seed(state)
            models.append(weights(build()))
        assert_same(models[0], models[1])
        assert any(not torch.equal(tensor, models[2][name]) for name, tensor in models[0].items())

    def test_without_a_generator_layers_are_torchs_own(self):
        torch.manual_seed(0)
        model = nn.MLP((3, 4, 2))
        torch.manual_seed(0)
        for ours, theirs in ((model[0], torch.nn.Linear(3, 4)), (model[2], torch.nn.Linear(4, 2))):
            assert_same(weights(ours), weights(theirs))

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: nn.initialize(torch.nn.Linear(2, 2), -0.1), "gain must be at least 0, got -0.1"),
            (lambda: nn.initialize(torch.nn.Linear(2, 2), math.nan), "gain must be at least 0, got nan"),
            (
                lambda: nn.initialize(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Bilinear(2, 2, 2))),
                "no law for layer '1', Bilinear",
            ),
            (lambda: nn.initialize(torch.nn.PReLU()), "no law for layer '', PReLU"),
        ],
    )
    def test_bad_input(self, call, message):
        with pytest.raises(ValueError, match=message):
            call()


class TestEveryArchitecture:
    @pytest.mark.parametrize("device", DEVICES)
    @architectures
    def test_shapes_devices_and_dtypes(self, build, shape, device):
        model = build(generator=seeded(0)).to(device).eval()
        x = gaussian(1, 5, *shape).to(device)
        logits = model(x)
        assert logits.shape[0] == 5 and logits.device.type == device and logits.dtype == torch.float32
        # samples do not meet in evaluation mode
        torch.testing.assert_close(model(x[2:3]), logits[2:3])
        double = model.double()(x.double())
        assert double.dtype == torch.float64
        torch.testing.assert_close(double.float(), logits, rtol=1e-3, atol=1e-4)

    @architectures
    def test_every_parameter_has_a_gradient(self, build, shape):
        model = build(generator=seeded(0))
        (model(gaussian(1, 6, *shape)) ** 2).sum().backward()
        assert all(p.grad is not None for p in model.parameters())

    @architectures
    def test_default_dtype(self, build, shape):
        torch.set_default_dtype(torch.float64)
        try:
            assert {p.dtype for p in build(generator=seeded(0)).parameters()} == {torch.float64}
        finally:
            torch.set_default_dtype(torch.float32)


class TestMLP:
    @given(
        st.lists(st.integers(1, 6), min_size=2, max_size=5), st.integers(0, 999), st.sampled_from([(), (3,), (2, 4)])
    )
    @settings(max_examples=20)
    def test_by_hand(self, sizes, seed, batch):
        model = nn.MLP(sizes, torch.nn.Softplus, generator=seeded(seed))
        x = h = gaussian(seed, *batch, sizes[0])
        layers = [module for module in model if isinstance(module, torch.nn.Linear)]
        for i, layer in enumerate(layers):
            h = h @ layer.weight.T + layer.bias
            if i < len(layers) - 1:
                h = torch.log1p(torch.exp(h))
        torch.testing.assert_close(model(x), h)
        assert [layer.out_features for layer in layers] == sizes[1:]
        # a layer has (inputs + 1)·outputs parameters and inputs·outputs multiplications
        cost = nn.model_cost(model, (sizes[0],))
        assert cost.parameters == sum((a + 1) * b for a, b in itertools.pairwise(sizes))
        assert cost.macs == sum(a * b for a, b in itertools.pairwise(sizes))

    def test_default_activation_is_tanh(self):
        model = nn.MLP((2, 3, 1))
        assert [type(module) for module in model] == [torch.nn.Linear, torch.nn.Tanh, torch.nn.Linear]

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(
        ("sizes", "message"),
        [
            ((3,), r"sizes must name at least inputs and outputs, got \(3,\)"),
            ((), "sizes must name at least"),
            ((3, 0, 1), r"sizes\[1\] must be at least 1, got 0"),
            ((3, 2.0), r"sizes\[1\] must be an integer"),
        ],
    )
    def test_bad_input(self, sizes, message):
        with pytest.raises(ValueError, match=message):
            nn.MLP(sizes)


def cnn_by_hand(model, x, kernel_size):
    for i in (1, 2):
        conv = getattr(model, f"conv{i}")
        x = F.conv2d(x, conv.weight, conv.bias, padding=(kernel_size - 1) // 2)
        if hasattr(model, f"norm{i}"):
            norm = getattr(model, f"norm{i}")
            x = (x - norm.running_mean[:, None, None]) / (norm.running_var[:, None, None] + 1e-5) ** 0.5
            x = x * norm.weight[:, None, None] + norm.bias[:, None, None]
        h, w = x.shape[-2] // 2, x.shape[-1] // 2
        # a last odd row or column is left out
        x = x[..., : 2 * h, : 2 * w].clamp(min=0).unflatten(-1, (w, 2)).unflatten(-3, (h, 2)).amax(dim=(-1, -3))
    x = (x.flatten(1) @ model.fc1.weight.T + model.fc1.bias).clamp(min=0)
    return x @ model.fc2.weight.T + model.fc2.bias


class TestCNN:
    # parameters K(f²C + 1) a convolution; multiplications K f² C a pixel, on 28² and then 14² of them; the same table
    # by hand for channels (a, b): a(f² + 1) + b(f² a + 1) + 128(49 b + 1) + 1290, and
    # 28²·f² a + 14²·f² ab + 49·128 b + 1280
    @pytest.mark.parametrize(
        ("channels", "kernel_size", "parameters", "macs"),
        [
            ((8, 16), 3, 103_018, 383_872),
            ((16, 32), 3, 206_922, 1_218_048),
            ((32, 64), 3, 421_642, 4_241_152),
            ((16, 32), 5, 215_370, 3_024_384),
            ((16, 32), 7, 228_042, 5_733_888),
        ],
    )
    def test_known_costs(self, channels, kernel_size, parameters, macs):
        assert nn.model_cost(nn.CNN(channels, kernel_size), (1, 28, 28)) == nn.ModelCost(parameters, macs)

    def test_parameters_by_layer(self):
        # 16(9 + 1), 32(9·16 + 1), 128(32·49 + 1), 10(128 + 1)
        layers = nn.CNN().named_children()
        counts = {name: sum(p.numel() for p in layer.parameters()) for name, layer in layers}
        assert {name: count for name, count in counts.items() if count} == {
            "conv1": 160, "conv2": 4640, "fc1": 200_832, "fc2": 1290
        }  # fmt: skip

    @pytest.mark.parametrize("batch_norm", [False, True])
    def test_names(self, batch_norm):
        names = [name for name, _ in nn.CNN(batch_norm=batch_norm).named_children()]
        convolutions = [f"{kind}{i}" for i in (1, 2) for kind in ("conv", "norm", "relu", "pool")]
        assert [name for name in convolutions if batch_norm or "norm" not in name] == names[:-4]
        assert names[-4:] == ["flatten", "fc1", "relu3", "fc2"]

    @given(
        st.tuples(st.integers(1, 3), st.integers(1, 3)),
        st.sampled_from([1, 3, 5]),
        st.tuples(st.integers(1, 3), st.integers(4, 13), st.integers(4, 13)),
        st.booleans(),
        st.integers(2, 4),
        st.integers(1, 5),
    )
    @settings(max_examples=25)
    def test_by_hand(self, channels, kernel_size, in_shape, batch_norm, n_classes, hidden):
        options = {"hidden": hidden, "n_classes": n_classes, "in_shape": in_shape, "batch_norm": batch_norm}
        model = nn.CNN(channels, kernel_size, generator=seeded(3), **options)
        x = gaussian(0, 3, *in_shape)
        if batch_norm:
            model(x)  # statistics other than 0 and 1
        model.eval()
        with torch.no_grad():
            torch.testing.assert_close(model(x), cnn_by_hand(model, x, kernel_size), rtol=1e-4, atol=1e-5)
        assert model(x).shape == (3, n_classes)
        (c, h, w), (a, b), f2 = in_shape, channels, kernel_size**2
        features = b * (h // 4) * (w // 4)
        # normalisation: a scale and a shift a channel instead of a bias
        norm = 1 + batch_norm
        assert nn.model_cost(model, in_shape) == nn.ModelCost(
            a * (f2 * c + norm) + b * (f2 * a + norm) + hidden * (features + 1) + n_classes * (hidden + 1),
            h * w * f2 * a * c + (h // 2) * (w // 2) * f2 * a * b + features * hidden + hidden * n_classes,
        )

    # conv–pool–conv–pool of one kernel size f: f, f + 1, 3f - 1, 3f + 1
    @pytest.mark.parametrize(("kernel_size", "fields"), [(3, (3, 4, 8, 10)), (5, (5, 6, 14, 16)), (7, (7, 8, 20, 22))])
    def test_receptive_fields(self, kernel_size, fields):
        model = nn.CNN((1, 1), kernel_size)
        with torch.no_grad():
            for conv in (model.conv1, model.conv2):
                conv.weight.fill_(1.0)
                conv.bias.zero_()
        # with positive weights a single bright pixel shows in an output if and only if that output sees it
        x = torch.eye(28 * 28).reshape(-1, 1, 28, 28)
        found = []
        with torch.no_grad():
            for name, layer in model.named_children():
                if name == "flatten":
                    break
                x = layer(x)
                if name[:4] in ("conv", "pool"):
                    centre = x.shape[-1] // 2
                    seen = (x[:, 0, centre, centre] > 0).reshape(28, 28)
                    rows, columns = seen.any(dim=1), seen.any(dim=0)
                    assert torch.equal(seen, rows[:, None] & columns)  # a square
                    assert rows.sum() == columns.sum()
                    found.append(int(rows.sum()))
        assert tuple(found) == fields

    def test_shifts_by_the_stride_shift_the_features(self):
        # away from the border, features move by one pixel when the image moves by 4
        model = nn.CNN((2, 3), generator=seeded(0))
        features = torch.nn.Sequential(*list(model.children())[:6])
        image = torch.zeros(1, 1, 28, 28)
        image[..., 10:14, 10:14] = gaussian(1, 4, 4)
        first, second = features(image), features(image.roll((4, -4), (2, 3)))
        torch.testing.assert_close(first.roll((1, -1), (2, 3))[..., 2:-1, 1:-2], second[..., 2:-1, 1:-2])

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: nn.CNN((0, 2)), r"channels\[0\] must be at least 1, got 0"),
            (lambda: nn.CNN((2, 0)), r"channels\[1\] must be at least 1, got 0"),
            (lambda: nn.CNN(kernel_size=4), "kernel_size must be odd, .* got 4"),
            (lambda: nn.CNN(kernel_size=0), "kernel_size must be at least 1, got 0"),
            (lambda: nn.CNN(hidden=0), "hidden must be at least 1, got 0"),
            (lambda: nn.CNN(n_classes=1), "n_classes must be at least 2, got 1"),
            (lambda: nn.CNN(in_shape=(0, 4, 4)), r"in_shape\[0\] must be at least 1, got 0"),
            (lambda: nn.CNN(in_shape=(1, 3, 4)), r"in_shape\[1\] must be at least 4, got 3"),
            (lambda: nn.CNN(in_shape=(1, 4, 3)), r"in_shape\[2\] must be at least 4, got 3"),
            (lambda: nn.CNN()(torch.ones(1, 28, 28)), r"images must have shape \(n, 1, 28, 28\), got \(1, 28, 28\)"),
            (lambda: nn.CNN()(torch.ones(2, 3, 28, 28)), r"\(n, 1, 28, 28\), got \(2, 3, 28, 28\)"),
            # 29 // 4 = 28 // 4: without the check it would pass unseen
            (lambda: nn.CNN()(torch.ones(2, 1, 29, 28)), r"\(n, 1, 28, 28\), got \(2, 1, 29, 28\)"),
            (lambda: nn.CNN()(torch.ones(2, 1, 28, 29)), r"\(n, 1, 28, 28\), got \(2, 1, 28, 29\)"),
        ],
    )
    def test_bad_input(self, call, message):
        with pytest.raises(ValueError, match=message):
            call()


def batch_normalised(z):
    """In training mode, with scale 1 and shift 0: the variance has divisor n."""
    return (z - z.mean(dim=0)) / (z.var(dim=0, correction=0) + 1e-5) ** 0.5


class TestResidualMLP:
    # the example of the spiral: 64(2 + 1) + 4·2·(64·65 + 2·64) + 3·65; normalisation makes the 2·64 of them
    @pytest.mark.parametrize(("batch_norm", "parameters"), [(True, 34_691), (False, 33_667)])
    @pytest.mark.parametrize("skip", [True, False])
    def test_known_costs(self, batch_norm, parameters, skip):
        model = nn.ResidualMLP(2, 3, batch_norm=batch_norm, skip=skip)
        assert nn.model_cost(model, (2,)) == nn.ModelCost(parameters, 2 * 64 + 8 * 64**2 + 64 * 3)

    @given(st.integers(1, 5), st.integers(0, 3), st.booleans(), st.booleans(), st.integers(1, 4), st.integers(1, 3))
    @settings(max_examples=25)
    def test_by_hand(self, width, n_blocks, batch_norm, skip, d, n_classes):
        model = nn.ResidualMLP(
            d, n_classes, width=width, n_blocks=n_blocks, batch_norm=batch_norm, skip=skip, generator=seeded(2)
        ).double()
        x = gaussian(0, 6, d, dtype=torch.float64)
        linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
        norm = batch_normalised if batch_norm else lambda z: z
        h = linear[0](x).clamp(min=0)
        for first, second in zip(linear[1:-1:2], linear[2:-1:2], strict=True):
            g = norm(second(norm(first(h)).clamp(min=0)))
            h = (h + g if skip else g).clamp(min=0)
        torch.testing.assert_close(model(x), linear[-1](h))
        assert len(linear) == 2 + 2 * n_blocks
        norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm1d)]
        assert len(norms) == 2 * n_blocks * batch_norm

    @pytest.mark.parametrize("batch_norm", [True, False])
    @pytest.mark.parametrize("skip", [True, False])
    def test_blocks_that_add_nothing(self, batch_norm, skip):
        model = nn.ResidualMLP(2, 3, width=5, batch_norm=batch_norm, skip=skip, generator=seeded(0))
        with torch.no_grad():
            for block in model.blocks:
                block.g[-1].weight.zero_()
                block.g[-1].bias.zero_()
        h = gaussian(1, 7, 5)
        # ReLU(h + 0), or ReLU(0)
        assert torch.equal(model.blocks[1](h), h.clamp(min=0) if skip else torch.zeros_like(h))
        x = gaussian(2, 7, 2)
        through = torch.relu(model.fc_in(x)) if skip else torch.zeros(7, 5)
        torch.testing.assert_close(model(x), model.fc_out(through))

    def test_bias_before_normalisation_has_no_gradient(self):
        # BN(z + c) = BN(z)
        model = nn.ResidualMLP(2, 3, width=5, n_blocks=2, generator=seeded(0)).double()
        model(gaussian(1, 9, 2, dtype=torch.float64)).pow(2).sum().backward()
        for block in model.blocks:
            assert block.g[0].bias.grad.abs().max() < 1e-12 < block.g[0].weight.grad.abs().max()
            assert block.g[3].bias.grad.abs().max() < 1e-12 < block.g[3].weight.grad.abs().max()

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: nn.ResidualMLP(0, 3), "in_dim must be at least 1, got 0"),
            (lambda: nn.ResidualMLP(2, 0), "n_classes must be at least 1, got 0"),
            (lambda: nn.ResidualMLP(2, 3, width=0), "width must be at least 1, got 0"),
            (lambda: nn.ResidualMLP(2, 3, n_blocks=-1), "n_blocks must be at least 0, got -1"),
        ],
    )
    def test_bad_input(self, call, message):
        with pytest.raises(ValueError, match=message):
            call()


def resnet_parameters(widths, n_blocks, in_channels, n_classes, skip):
    # without biases: 9 n_in n_out a convolution and 2 n_out its normalisation; projections n_in n_out + 2 n_out
    total, n_in = 9 * in_channels * widths[0] + 2 * widths[0], widths[0]
    for stage, width in enumerate(widths):
        total += 9 * n_in * width + 9 * width**2 * (2 * n_blocks - 1) + 4 * width * n_blocks
        if stage and skip:
            total += n_in * width + 2 * width
        n_in = width
    return total + n_classes * (n_in + 1)


class TestResNet:
    @given(
        st.lists(st.integers(1, 4), min_size=1, max_size=3),
        st.integers(1, 3),
        st.integers(1, 3),
        st.integers(2, 4),
        st.booleans(),
        st.tuples(st.integers(1, 12), st.integers(1, 12)),
    )
    @settings(max_examples=25)
    def test_costs_and_shapes(self, widths, n_blocks, in_channels, n_classes, skip, size):
        model = nn.ResNet(
            widths, n_blocks, n_classes=n_classes, in_channels=in_channels, skip=skip, generator=seeded(0)
        ).eval()
        assert model(gaussian(1, 2, in_channels, *size)).shape == (2, n_classes)
        # stride 2 with padding 1 leaves ⌈h/2⌉
        halved = lambda n: -(-n // 2)  # noqa: E731
        h, w = halved(size[0]), halved(size[1])
        macs, n_in = h * w * 9 * in_channels * widths[0], widths[0]
        for stage, width in enumerate(widths):
            if stage:
                h, w = halved(h), halved(w)
                macs += h * w * n_in * width * skip
            macs += h * w * 9 * (n_in * width + width**2 * (2 * n_blocks - 1))
            n_in = width
        assert nn.model_cost(model, (in_channels, *size)) == nn.ModelCost(
            resnet_parameters(widths, n_blocks, in_channels, n_classes, skip), macs + n_in * n_classes
        )

    def test_stages(self):
        model = nn.ResNet((2, 3, 3), 2, generator=seeded(0))
        shapes = []
        for part in (model.stem, *model.blocks):
            part.register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape[1:])))
        model(torch.ones(2, 1, 28, 28))
        # 28 → 14 → 7 → 4
        assert shapes == [(2, 14, 14)] * 3 + [(3, 7, 7)] * 2 + [(3, 4, 4)] * 2
        # the third stage keeps the channels, but halves the image
        kinds = [isinstance(block.projection, torch.nn.Identity) for block in model.blocks]
        assert kinds == [True, True, False, True, False, True]

    @pytest.mark.parametrize("skip", [True, False])
    def test_blocks_that_add_nothing(self, skip):
        model = nn.ResNet((2, 3), generator=seeded(0), skip=skip).eval()
        with torch.no_grad():
            for block in model.blocks:
                block.g[-1].weight.zero_()
        h = gaussian(1, 4, 2, 7, 7)
        first, second = (block(h) for block in model.blocks)
        if not skip:
            assert not first.any() and not second.any() and second.shape == (4, 3, 4, 4)
            return
        assert torch.equal(first, h.clamp(min=0))
        # a 1×1 convolution of stride 2 sees every other pixel; empty statistics only divide by √(1 + ε)
        weight = model.blocks[1].projection[0].weight[..., 0, 0]
        projected = torch.einsum("oc,nchw->nohw", weight, h[..., ::2, ::2]) / (1 + 1e-5) ** 0.5
        torch.testing.assert_close(second, projected.clamp(min=0))

    def test_by_hand(self):
        model = nn.ResNet((2, 3), generator=seeded(0)).double()
        x = gaussian(1, 3, 1, 9, 9, dtype=torch.float64)

        def convolved(z, conv, stride=1):
            z = F.conv2d(z, conv.weight, stride=stride, padding=conv.weight.shape[-1] // 2)
            return batch_normalised(z.movedim(1, -1).flatten(0, 2)).unflatten(0, (3, *z.shape[2:])).movedim(-1, 1)

        h = convolved(x, model.stem[0], 2).clamp(min=0)
        first, second = model.blocks
        h = (h + convolved(convolved(h, first.g[0]).clamp(min=0), first.g[3])).clamp(min=0)
        g = convolved(convolved(h, second.g[0], 2).clamp(min=0), second.g[3])
        h = (convolved(h, second.projection[0], 2) + g).clamp(min=0)
        torch.testing.assert_close(model(x), h.sum(dim=(2, 3)) / 9 @ model.fc.weight.T + model.fc.bias)

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: nn.ResNet(()), "widths must name at least one stage, got none"),
            (lambda: nn.ResNet((2, 0)), r"widths\[1\] must be at least 1, got 0"),
            (lambda: nn.ResNet(n_blocks=0), "n_blocks must be at least 1, got 0"),
            (lambda: nn.ResNet(n_classes=1), "n_classes must be at least 2, got 1"),
            (lambda: nn.ResNet(in_channels=0), "in_channels must be at least 1, got 0"),
            (
                lambda: nn.ResNet((2,))(torch.ones(2, 3, 8, 8)),
                r"images must have shape \(n, 1, any, any\), got \(2, 3, 8, 8\)",
            ),
            (lambda: nn.ResNet((2,))(torch.ones(1, 8, 8)), r"\(n, 1, any, any\), got \(1, 8, 8\)"),
        ],
    )
    def test_bad_input(self, call, message):
        with pytest.raises(ValueError, match=message):
            call()


class TestResidualBlock:
    def test_projection(self):
        halve = torch.nn.Linear(2, 1, bias=False)
        torch.nn.init.constant_(halve.weight, 0.5)
        g = torch.nn.Linear(2, 1)
        torch.nn.init.constant_(g.weight, 0.0)
        torch.nn.init.constant_(g.bias, -1.0)
        h = torch.tensor([[4.0, 2.0], [1.0, 0.0]])
        # mean - 1, at least 0
        assert torch.equal(nn.ResidualBlock(g, projection=halve)(h), torch.tensor([[2.0], [0.0]]))
        plain = nn.ResidualBlock(g, projection=halve, skip=False)
        assert torch.equal(plain(h), torch.zeros(2, 1))
        assert sum(p.numel() for p in plain.parameters()) == 3  # no weights that nothing uses


class TestModelCost:
    def test_resnet18(self):
        resnet18 = import_torchvision("torchvision.models").resnet18
        # He et al. 2016: 1.8·10⁹ multiplications. Pixels 112², then 4 convolutions 56²·9·64² for the first stage; the
        # later stages have 3 + ½ of such convolutions and a projection of ½·1/9: a quarter of the pixels, four times
        # the weights each
        stage = 56**2 * 9 * 64**2
        macs = 112**2 * 49 * 3 * 64 + 4 * stage + 3 * stage * 7 // 2 + 3 * (stage // 18) + 512 * 1000
        assert nn.model_cost(resnet18(), (3, 224, 224)) == nn.ModelCost(11_689_512, macs)
        # for digits: 1 channel, a 3×3 first convolution of stride 1, 10 classes
        model = resnet18(num_classes=10)
        model.conv1 = torch.nn.Conv2d(1, 64, 3, 1, 1, bias=False)
        # pixels 28², after the pooling 14², 7², 4², 2²
        unit = 64**2
        macs = 28**2 * 9 * 64 + 14**2 * 36 * unit + (7**2 + 4**2 * 4 + 2**2 * 16) * 128 * unit + 5120
        assert nn.model_cost(model, (1, 28, 28)) == nn.ModelCost(11_172_810, macs)

    @pytest.mark.parametrize("device", DEVICES)
    @pytest.mark.parametrize("training", [True, False])
    def test_leaves_the_model_alone(self, device, training):
        model = nn.ResNet((2, 3), generator=seeded(0)).to(device).train(training)
        before = weights(model)
        parameters = list(model.parameters())
        seen = []
        hook = model.register_forward_hook(lambda _, inputs, out: seen.append((inputs[0].device.type, out.device.type)))
        model.stem.train(not training)  # say, a frozen part
        modes = [module.training for module in model.modules()]
        nn.model_cost(model, (1, 8, 8))
        hook.remove()
        assert seen == [("meta", "meta")]  # shapes only: no arithmetic is done
        assert all(p is q for p, q in zip(model.parameters(), parameters, strict=True))
        assert {p.device.type for p in model.parameters()} == {device}
        assert_same(weights(model), before)
        assert [module.training for module in model.modules()] == modes

    def test_mode_is_put_back_after_an_error(self):
        model = nn.CNN().train()
        with pytest.raises(ValueError, match=r"images must have shape \(n, 1, 28, 28\), got \(1, 1, 27, 28\)"):
            nn.model_cost(model, (1, 27, 28))
        assert model.training

    @pytest.mark.parametrize(
        ("model", "in_shape", "expected"),
        [
            # K(f² C/groups) multiplications for each of 5·5 outputs
            (torch.nn.Conv2d(4, 6, 3, groups=2, bias=False), (4, 7, 7), (108, 25 * 6 * 9 * 2)),
            (torch.nn.Linear(3, 4), (5, 3), (16, 5 * 12)),  # five vectors a sample
            (torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.ReLU()), (3,), (6, 0)),
        ],
    )
    def test_single_layers(self, model, in_shape, expected):
        assert nn.model_cost(model, in_shape) == nn.ModelCost(*expected)


class TestSlices:
    def test_a_slice_is_the_first_layers_with_their_names(self):
        cnn, mlp = (
            nn.CNN(generator=torch.Generator().manual_seed(0)),
            nn.MLP((2, 3, 4), generator=torch.Generator().manual_seed(0)),
        )
        x = torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(cnn[:3](x), cnn.pool1(cnn.relu1(cnn.conv1(x))))
        assert [name for name, _ in cnn[:3].named_children()] == ["conv1", "relu1", "pool1"]
        assert cnn[0] is cnn.conv1 and mlp[-1] is list(mlp.children())[-1]


@pytest.mark.parametrize("sizes", [{"channels": (1, 2, 3)}, {"channels": (4,)}, {"in_shape": (1, 28)}])
def test_cnn_refuses_another_number_of_sizes(sizes, unchecked):
    with pytest.raises(ValueError, match="channels must be two and in_shape three"):
        nn.CNN(**sizes)


def test_a_network_of_points_and_times_starts_at_zero_and_sees_both():
    net, x, t = (
        nn.TimeMLP(2, (16,), generator=seeded(0)),
        torch.randn(5, 2, generator=seeded(1)),
        torch.linspace(0, 1, 5),
    )
    assert torch.equal(net(x, t), torch.zeros(5, 2))
    with torch.no_grad():
        net.net[-1].weight.fill_(0.1)
    assert torch.equal(net(x, 0.5), net(x, torch.full((5,), 0.5)))
    assert not torch.allclose(net(x, t), net(x, t + 0.1)) and not torch.allclose(net(x, t), net(x + 0.1, t))
    # inputs: x and t, and a sine and a cosine of each at four frequencies
    assert net.net[0].in_features == 3 * 9
    seen = []
    net.net.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    net(x, t)
    z = torch.cat([x, t.unsqueeze(1)], dim=1)
    waves = [f(2**k * z) for k in range(4) for f in (torch.sin, torch.cos)]
    assert torch.equal(seen[0], torch.cat([z, *waves], dim=1))


UNETS = {
    "one level": ((4,), (1, 6, 6), 1, 0),
    "two levels": ((4, 6), (1, 8, 8), 2, 8),
    "three levels": ((4, 5, 6), (2, 12, 16), 1, 8),
    "odd sizes": ((4, 6, 8), (1, 27, 29), 1, 8),
    "digits": ((8, 16), (1, 28, 28), 2, 16),
}
unets = pytest.mark.parametrize(("channels", "shape", "patch", "bottleneck"), UNETS.values(), ids=UNETS)


def shaken(model):
    """With noise in every parameter: the last layer starts at zero."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=seeded(7))
    return model


@unets
def test_a_unet_keeps_the_shape_of_images(channels, shape, patch, bottleneck):
    build = lambda: nn.UNet(channels, shape, patch, 8, bottleneck, generator=seeded(0))  # noqa: E731
    x, t = torch.randn(3, *shape, generator=seeded(1)), torch.tensor([-1.0, 0.5, 2.0])
    assert torch.equal(build()(x, t), torch.zeros(3, *shape))
    model = shaken(build())
    y = model(x, t)
    assert y.shape == x.shape
    # images are independent of each other, and each sees its own t
    for i in range(3):
        assert torch.allclose(model(x[i : i + 1], t[i : i + 1]), y[i : i + 1], atol=1e-5)
    assert not torch.allclose(model(x, t + 0.3), y, atol=1e-4)
    assert torch.equal(shaken(build())(x, t), y)
    y.square().sum().backward()
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in model.parameters())


def test_every_pixel_of_a_unet_can_see_every_other():
    model = shaken(nn.UNet((4, 6), (1, 28, 28), 2, 8, 8, generator=seeded(0)))
    x = torch.zeros(1, 1, 28, 28, requires_grad=True)
    model(x, torch.zeros(1))[0, 0, 0, 0].backward()
    assert bool((x.grad != 0).all())


def test_the_parts_of_a_unet_pass_an_image_through_unchanged():
    """With the last convolution a delta, all others zero and the stem a copy, what is left is SiLU of the input."""
    model = nn.UNet((1,), (1, 5, 5), 1, 4, 0)
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    with torch.no_grad():
        model.stem.weight[0, 0, 1, 1] = 1
        model.out.weight[0, 0, 1, 1] = 1
    x = torch.randn(2, 1, 5, 5, generator=seeded(0))
    assert torch.allclose(model(x, torch.zeros(2)), F.silu(x), atol=1e-6)
    # with deltas in the lowest block too, and no modulation, the block adds SiLU twice
    with torch.no_grad():
        model.lowest.conv1.weight[0, 0, 1, 1] = 1
        model.lowest.conv2.weight[0, 0, 1, 1] = 1
    assert torch.allclose(model(x, torch.zeros(2)), F.silu(x + F.silu(F.silu(x))), atol=1e-6)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: nn.UNet(()), "there must be channels"),
        (lambda: nn.UNet((4,), (1, 28)), "three numbers in in_shape"),
        (lambda: nn.UNet((4,), (1, 9, 8), 2), "multiples of patch = 2, got 9 and 8"),
        (lambda: nn.UNet((4, 0)), r"channels\[1\] must be at least 1"),
        (lambda: nn.UNet(bottleneck=-1), "bottleneck must be at least 0"),
        (lambda: nn.UNet((4,), (1, 8, 8), 2)(torch.zeros(2, 1, 10, 8), torch.zeros(2)), r"shape \(n, 1, 8, 8\)"),
        (
            lambda: nn.UNet((4,), (1, 8, 8), 2, bottleneck=0)(torch.zeros(2, 2, 8, 8), torch.zeros(2)),
            "images must have",
        ),
        (lambda: nn.TimeMLP(0, (4,)), "dim must be at least 1"),
        (lambda: nn.TimeMLP(2, (4,), n_frequencies=0), "n_frequencies must be at least 1"),
    ],
)
def test_bad_sizes_of_networks_with_time(build, message, unchecked):
    with pytest.raises(ValueError, match=message):
        build()
