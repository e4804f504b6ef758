import copy
import math

import numpy as np
import pytest
import sklearn.metrics
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coursekit import nn, training

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")),
]


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def gaussian(seed, *shape, dtype=torch.float64):
    return torch.randn(*shape, generator=seeded(seed), dtype=dtype)


def line():
    """x ↦ w x with w = 1."""
    model = torch.nn.Linear(1, 1, bias=False).double()
    torch.nn.init.ones_(model.weight)
    return model


def mean_output(model, X):
    return model(X).mean()


def sgd(model, lr=0.1):
    return torch.optim.SGD(model.parameters(), lr)


def ones(n):
    return (torch.ones(n, 1, dtype=torch.float64),)


def squares(model, X, y):
    return ((model(X)[:, 0] - y) ** 2).mean() / 2


def classifier(seed=0):
    """A small network with batch normalisation, and data for it."""
    model = nn.ResidualMLP(2, 3, width=4, n_blocks=1, generator=seeded(seed)).double()
    y = torch.arange(12) % 3
    return model, (gaussian(seed + 1, 12, 2) + y[:, None], y)


def modes(model):
    return [module.training for module in model.modules()]


class TestFit:
    def test_least_squares(self):
        # gradient descent on ½ mean (Xw - y)²: w_k = w* + (I - ηH)^k (w_0 - w*), H = XᵀX/n
        X, y = gaussian(0, 40, 3), gaussian(1, 40)
        model = torch.nn.Linear(3, 1, bias=False).double()
        H, start = X.T @ X / 40, model.weight.detach()[0].clone()
        best = torch.linalg.lstsq(X, y[:, None]).solution[:, 0]
        lr = float(1 / torch.linalg.eigvalsh(H)[-1])
        paths = []
        history = training.fit(
            model, squares, (X, y), sgd(model, lr), epochs=300, batch_size=40,
            evaluate=lambda model: paths.append(model.weight.detach()[0].clone()) or {"first": float(paths[-1][0])},
            generator=seeded(0),
        )  # fmt: skip
        power, expected = torch.eye(3, dtype=torch.float64), []
        for _ in range(301):
            expected.append(best + power @ (start - best))
            power = power @ (torch.eye(3) - lr * H)
        torch.testing.assert_close(torch.stack(paths), torch.stack(expected), rtol=1e-11, atol=1e-12)
        losses = [float(((X @ w - y) ** 2).mean() / 2) for w in expected[:-1]]
        np.testing.assert_allclose(history.loss, losses, rtol=1e-11)
        np.testing.assert_array_equal(history.metrics["first"], [path[0] for path in paths])
        torch.testing.assert_close(model.weight.detach()[0], best, rtol=1e-9, atol=1e-9)
        assert history.loss.dtype == float and history.gradient_norms == {} and history.ema is None

    @pytest.mark.parametrize("device", DEVICES)
    @pytest.mark.parametrize("method", [torch.optim.SGD, torch.optim.AdamW])
    def test_is_the_loop_written_by_hand(self, method, device):
        model, (X, y) = classifier()
        model, X, y = model.to(device), X.to(device), y.to(device)
        other = copy.deepcopy(model).train()
        indices = []

        def loss(model, X, y, index):
            indices.append(index)
            return training.cross_entropy(model, X, y)

        data = (X, y, torch.arange(12, device=device))
        history = training.fit(model, loss, data, method(model.parameters(), lr=0.05), epochs=3, batch_size=5)
        assert [len(index) for index in indices] == [5, 5, 2] * 3
        optimizer = method(other.parameters(), lr=0.05)
        losses = []
        for index in indices:
            optimizer.zero_grad()
            value = torch.nn.functional.cross_entropy(other(X[index]), y[index])
            value.backward()
            optimizer.step()
            losses.append(value.item())
        np.testing.assert_array_equal(history.loss, losses)
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, other.state_dict()[name]), name

    @given(st.integers(1, 12), st.integers(1, 14), st.integers(1, 3))
    @settings(max_examples=60)
    def test_batches(self, n, batch_size, epochs):
        seen = []

        def loss(model, X, index):
            assert torch.equal(X[:, 0], 3.0 * index)  # rows stay together
            seen.append(index.tolist())
            return mean_output(model, X)

        index, model = torch.arange(n), line()
        history = training.fit(
            model, loss, ((3.0 * index[:, None]).double(), index), sgd(model, 0.0), epochs=epochs,
            batch_size=batch_size, generator=seeded(n),
        )  # fmt: skip
        sizes = [batch_size] * (n // batch_size) + [n % batch_size] * (n % batch_size > 0)
        if sizes[-1] == 1 and batch_size > 1 and n > 1:
            sizes = sizes[:-1]  # a single sample has no variance to normalise by
        assert [len(batch) for batch in seen] == sizes * epochs
        assert len(history.loss) == len(sizes) * epochs
        for epoch in range(epochs):
            visited = sorted(i for batch in seen[epoch * len(sizes) : (epoch + 1) * len(sizes)] for i in batch)
            assert visited == sorted(set(visited)) and len(visited) == sum(sizes)

    def test_order_is_uniform(self):
        first = []
        model = line()
        training.fit(
            model, lambda model, index: first.append(int(index[0])) or model(index[:, None].double()).mean(),
            (torch.arange(5),), sgd(model, 0.0), epochs=500, batch_size=5, generator=seeded(0),
        )  # fmt: skip
        # each of 5 comes first with probability 1/5, and again next time with probability 1/5
        counts = np.bincount(first, minlength=5) / 500
        assert (np.abs(counts - 0.2) < 5 * np.sqrt(0.16 / 500)).all()
        assert abs(np.mean(np.diff(first) == 0) - 0.2) < 5 * np.sqrt(0.16 / 499)

    def test_follows_from_the_generator_alone(self):
        def run(seed, state):
            torch.manual_seed(state)
            model, data = classifier()
            generator = None if seed is None else seeded(seed)
            return training.fit(
                model, training.cross_entropy, data, sgd(model), epochs=2, batch_size=4, generator=generator
            ).loss

        np.testing.assert_array_equal(run(0, 1), run(0, 2))
        assert (run(0, 1) != run(1, 1)).any()
        np.testing.assert_array_equal(run(None, 1), run(None, 1))
        assert (run(None, 1) != run(None, 2)).any()

    def test_leaves_torchs_state_alone(self):
        model, data = classifier()
        before = torch.get_rng_state()
        training.fit(model, training.cross_entropy, data, sgd(model), epochs=1, batch_size=4, generator=seeded(0))
        assert torch.equal(torch.get_rng_state(), before)

    @pytest.mark.parametrize("mode", [True, False])
    @pytest.mark.parametrize("ema_decay", [None, 0.5])
    def test_modes(self, mode, ema_decay):
        model, data = classifier()
        calls = []

        def loss(model, *batch):
            assert all(modes(model)) and torch.is_grad_enabled()
            calls.append("step")
            return training.cross_entropy(model, *batch)

        def evaluate(model):
            assert not any(modes(model)) and not torch.is_grad_enabled()
            calls.append("evaluate")
            return {"calls": len(calls), "one": 1.0}

        model.train(mode)
        history = training.fit(
            model, loss, data, sgd(model), epochs=2, batch_size=6, evaluate=evaluate, ema_decay=ema_decay
        )
        assert calls == ["evaluate", "step", "step", "evaluate", "step", "step", "evaluate"]
        assert {name: values.tolist() for name, values in history.metrics.items()} == {
            "calls": [1, 4, 7], "one": [1, 1, 1]
        }  # fmt: skip
        assert modes(model) == [mode] * len(modes(model)) and torch.is_grad_enabled()

    def test_an_error_in_evaluate_puts_the_mode_back(self):
        model, data = classifier()

        def evaluate(model):
            raise KeyError("ours")

        model.train()
        with pytest.raises(KeyError, match="ours"):
            training.fit(model, training.cross_entropy, data, sgd(model), epochs=1, batch_size=6, evaluate=evaluate)
        assert all(modes(model)) and torch.is_grad_enabled()

    def test_an_error_in_a_step_puts_the_mode_back(self):
        model, data = classifier()

        def loss(model, *batch):
            raise KeyError("ours")

        model.eval()
        with pytest.raises(KeyError, match="ours"):
            training.fit(model, loss, data, sgd(model), epochs=1, batch_size=6)
        assert not any(modes(model))

    def test_mixed_modes_are_put_back(self):
        model, data = classifier()
        model.train().blocks.eval()
        before = modes(model)
        training.fit(model, training.cross_entropy, data, sgd(model), epochs=1, batch_size=6)
        assert modes(model) == before

    @pytest.mark.parametrize("decay", [0.0, 0.5, 0.9])
    def test_average(self, decay):
        # the gradient is 1: w_k = 1 - ηk, and w̄_k = d w̄_{k-1} + (1 - d) w_k from w̄_0 = w_0 is
        # 1 - η(k - d(1 - dᵏ)/(1 - d))
        model = line()
        history = training.fit(
            model, mean_output, ones(6), sgd(model), epochs=4, batch_size=2, ema_decay=decay,
            evaluate=lambda model: {"w": model.weight.item()},
        )  # fmt: skip
        k = np.arange(0, 13, 3)
        expected = 1 - 0.1 * (k - decay * (1 - decay**k) / (1 - decay))
        np.testing.assert_allclose(history.metrics["w"], expected, rtol=1e-12)
        assert history.ema.weight.item() == history.metrics["w"][-1]
        assert model.weight.item() == pytest.approx(1 - 0.1 * 12, rel=1e-12)
        assert not history.ema.training and type(history.ema) is torch.nn.Linear

    def test_statistics_are_averaged_as_well(self):
        # full batches of mean m: the running mean is m(1 - 0.9ᵏ), its average r̄_k = d r̄_{k-1} + (1 - d) m(1 - 0.9ᵏ)
        model = torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 1)).double()
        X = gaussian(0, 8, 2)
        history = training.fit(model, mean_output, (X,), sgd(model), epochs=5, batch_size=8, ema_decay=0.7)
        average = torch.zeros(2, dtype=torch.float64)
        for k in range(1, 6):
            average = 0.7 * average + 0.3 * X.mean(dim=0) * (1 - 0.9**k)
        torch.testing.assert_close(history.ema[0].running_mean, average)
        torch.testing.assert_close(model[0].running_mean, X.mean(dim=0) * (1 - 0.9**5))

    def test_schedule(self):
        # the gradient is 1: the k-th of n steps moves by η s(k/n), each group at its own η
        model = torch.nn.Sequential(line(), torch.nn.Linear(1, 1).double())
        with torch.no_grad():
            model[1].weight.fill_(1.0)
        optimizer = torch.optim.SGD([{"params": [model[1].bias]}, {"params": [model[0].weight], "lr": 0.0}], lr=0.5)
        biases = []

        def loss(model, X):
            biases.append(model[1].bias.item())
            return mean_output(model, X)

        fractions = []

        def schedule(s):
            fractions.append(s)
            return 1 + s**2

        # 7 = 2 + 2 + 2 + 1, and a single sample is left out: 3 steps an epoch
        training.fit(model, loss, ones(7), optimizer, epochs=4, batch_size=2, schedule=schedule)
        biases.append(model[1].bias.item())
        np.testing.assert_allclose(-np.diff(biases), 0.5 * (1 + (np.arange(12) / 12) ** 2), rtol=1e-12)
        np.testing.assert_allclose(list(dict.fromkeys(fractions))[:12], np.arange(12) / 12, rtol=1e-15)
        assert model[0].weight.item() == 1

    def test_schedule_is_asked_for_fractions_below_one_only(self):
        fractions, model = [], line()
        training.fit(
            model, mean_output, ones(4), sgd(model), epochs=2, batch_size=2,
            schedule=lambda s: fractions.append(s) or 1.0,
        )  # fmt: skip
        assert set(fractions) == {0, 0.25, 0.5, 0.75}  # 1/(1 - s) is a fair schedule

    def test_gradient_norms(self):
        X = gaussian(0, 6, 3)
        model = torch.nn.Linear(3, 1).double()
        apart = []

        def loss(model, X):
            apart.append(float(X.mean(dim=0).norm()))
            return mean_output(model, X)

        history = training.fit(model, loss, (X,), sgd(model), epochs=3, batch_size=2, gradient_norms=True)
        # mean of w·x + b: its gradient is the mean of x, and 1
        assert list(history.gradient_norms) == ["weight", "bias"]
        np.testing.assert_allclose(history.gradient_norms["weight"], apart, rtol=1e-12)
        np.testing.assert_allclose(history.gradient_norms["bias"], np.ones(9), rtol=1e-12)

    def test_gradient_norms_agree_with_the_function(self):
        model, data = classifier()
        apart = []

        def loss(model, *batch):
            apart.append(training.gradient_norms(copy.deepcopy(model), training.cross_entropy, *batch))
            return training.cross_entropy(model, *batch)

        history = training.fit(model, loss, data, sgd(model), epochs=2, batch_size=5, gradient_norms=True)
        assert history.gradient_norms.keys() == apart[0].keys()
        for name, values in history.gradient_norms.items():
            # biases before a normalisation have gradients of rounding size
            np.testing.assert_allclose(values, [row[name] for row in apart], rtol=1e-10, atol=1e-14)

    def test_frozen_parameters_have_gradient_zero(self):
        model = nn.MLP((2, 3))
        model[0].weight.requires_grad_(False)
        ours = training.gradient_norms(model, mean_output, torch.ones(4, 2))
        # three outputs, each a third of the mean
        assert ours == {"0.weight": 0, "0.bias": pytest.approx(3**-0.5)}

    def test_history_of_frozen_parameters(self):
        model = torch.nn.Linear(3, 1).double()
        model.weight.requires_grad_(False)
        kept = model.weight.clone()
        history = training.fit(
            model, mean_output, (gaussian(0, 4, 3),), sgd(model), epochs=2, batch_size=2, gradient_norms=True
        )
        np.testing.assert_array_equal(history.gradient_norms["weight"], np.zeros(4))
        assert torch.equal(model.weight, kept)

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize("epochs", [3, np.int64(3)])
    def test_epochs(self, epochs):
        model = line()
        assert len(training.fit(model, mean_output, ones(4), sgd(model), epochs=epochs, batch_size=2).loss) == 6

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("step", [0, 2, 7])
    def test_divergence(self, bad, step):
        model, calls = line(), []

        def loss(model, X):
            calls.append(None)
            # also what follows the first bad step is bad
            return mean_output(model, X) + (bad if len(calls) > step else 0)

        with pytest.raises(FloatingPointError, match=f"not finite at step {step}: {bad}"):
            training.fit(model, loss, ones(9), sgd(model), epochs=5, batch_size=3)
        assert len(calls) == 3 * (step // 3 + 1)  # at the end of the epoch

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (
                {"data": (torch.ones(3, 1), torch.ones(2))},
                r"tensors of one length.*, got lengths \[3, 2\]",
            ),
            ({"data": ()}, r"tensors of one length, at least 1, got lengths \[\]"),
            ({"data": (torch.ones(0, 1),)}, r"got lengths \[0\]"),
            ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
            ({"batch_size": 2.0}, "batch_size must be an integer, got 2.0"),
            ({"epochs": 0}, "epochs must be at least 1, got 0"),
            ({"epochs": True}, "epochs must be an integer, got True"),
            ({"epochs": 1.5}, "epochs must be an integer, got 1.5"),
            ({"epochs": [1]}, "epochs must be an integer, got"),
            ({"ema_decay": 1.0}, r"ema_decay must be in \[0, 1\), got 1.0"),
            ({"ema_decay": -0.1}, r"ema_decay must be in \[0, 1\), got -0.1"),
            ({"ema_decay": math.nan}, r"ema_decay must be in \[0, 1\), got nan"),
            ({"loss": lambda model, X: model(X)}, r"loss must return a scalar, got shape \(2, 1\)"),
            ({"loss": lambda model, X: model(X)[:1, 0]}, r"loss must return a scalar, got shape \(1,\)"),
        ],
    )
    def test_bad_input(self, options, message):
        model = line()
        arguments = {"loss": mean_output, "data": ones(4), "epochs": 1, "batch_size": 2} | options
        with pytest.raises(ValueError, match=message):
            training.fit(model, optimizer=sgd(model), **arguments)
        assert model.weight.item() == 1  # nothing was done


class TestCrossEntropy:
    @given(st.integers(1, 6), st.integers(2, 5), st.integers(0, 999))
    @settings(max_examples=30)
    def test_formula(self, n, n_classes, seed):
        logits, y = 3 * gaussian(seed, n, n_classes), torch.randint(n_classes, (n,), generator=seeded(seed))
        ours = training.cross_entropy(torch.nn.Identity(), logits, y)
        rows = zip(logits.tolist(), y.tolist(), strict=True)
        by_hand = np.mean([math.log(sum(map(math.exp, row))) - row[c] for row, c in rows])
        assert ours.shape == () and float(ours) == pytest.approx(by_hand, rel=1e-12)
        theirs = sklearn.metrics.log_loss(y.numpy(), logits.softmax(dim=1).numpy(), labels=range(n_classes))
        assert float(ours) == pytest.approx(theirs, rel=1e-9)

    def test_known_values(self):
        cross_entropy = lambda logits, y: float(  # noqa: E731
            training.cross_entropy(torch.nn.Identity(), torch.tensor(logits), torch.tensor(y))
        )
        # no preference costs log K
        assert cross_entropy([[0.0] * 10], [3]) == pytest.approx(math.log(10), rel=1e-6)
        # e^1000 would overflow
        assert cross_entropy([[1000.0, 0.0], [1000.0, 0.0]], [0, 1]) == 500

    def test_any_integer_type(self):
        logits, y = gaussian(0, 4, 3), torch.tensor([0, 2, 1, 1])
        expected = training.cross_entropy(torch.nn.Identity(), logits, y)
        for dtype in (torch.int32, torch.int16):
            assert training.cross_entropy(torch.nn.Identity(), logits, y.to(dtype)) == expected

    def test_gradient_is_softmax_less_one_hot(self):
        logits, y = gaussian(0, 4, 3).requires_grad_(), torch.tensor([0, 2, 1, 1])
        training.cross_entropy(torch.nn.Identity(), logits, y).backward()
        expected = (logits.detach().softmax(dim=1) - torch.eye(3)[y]) / 4
        torch.testing.assert_close(logits.grad, expected)

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(
        ("y", "message"),
        [
            (torch.tensor([0, 3]), r"labels must lie in 0..2, got 0..3"),
            (torch.tensor([-1, 2]), r"labels must lie in 0..2, got -1..2"),
            (torch.tensor([-100, 2]), r"labels must lie in 0..2, got -100..2"),  # which torch would ignore
            (torch.tensor([0.0, 1.0]), r"y must hold \(2,\) integer labels, got torch.float32 of \(2,\)"),
            (torch.tensor([0, 1, 2]), r"y must hold \(2,\) integer labels, got torch.int64 of \(3,\)"),
            (torch.eye(3)[:2].long(), r"got torch.int64 of \(2, 3\)"),
        ],
    )
    def test_bad_labels(self, y, message):
        for call in (
            lambda: training.cross_entropy(torch.nn.Identity(), torch.zeros(2, 3), y),
            lambda: training.classification_metrics(torch.zeros(2, 3), y)(torch.nn.Identity()),
        ):
            # metrics compare the lengths at once
            with pytest.raises(ValueError, match=rf"{message}|got lengths \[2, {len(y)}\]"):
                call()


class TestPredict:
    @given(st.integers(1, 15), st.integers(1, 17))
    @settings(max_examples=20)
    def test_any_batch_size(self, n, batch_size):
        model, data = classifier()
        model(data[0])  # statistics other than 0 and 1
        X = gaussian(3, n, 2)
        expected = copy.deepcopy(model).eval()(X)
        model.train()
        before = copy.deepcopy(model.state_dict())
        ours = training.predict(model, X, batch_size)
        torch.testing.assert_close(ours, expected)
        assert not ours.requires_grad and all(modes(model)) and torch.is_grad_enabled()
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

    def test_batches(self):
        sizes = []
        identity = torch.nn.Identity()
        identity.register_forward_hook(lambda _, inputs, out: sizes.append(len(out)))
        training.predict(identity, torch.ones(1201, 1))
        training.predict(identity, torch.ones(7, 1), 3)
        assert sizes == [500, 500, 201, 3, 3, 1]

    @pytest.mark.usefixtures("unchecked")
    def test_bad_input(self):
        with pytest.raises(ValueError, match="X must not be empty"):
            training.predict(torch.nn.Identity(), torch.ones(0, 2))
        with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
            training.predict(torch.nn.Identity(), torch.ones(2, 2), 0)


class TestClassificationMetrics:
    def test_by_hand(self):
        # softmax of (log 3, 0): 3/4 and 1/4; one sample of four is on the wrong side
        X = torch.tensor([[math.log(3), 0]] * 3 + [[0, math.log(3)]], dtype=torch.float64)
        ours = training.classification_metrics(X, torch.tensor([0, 0, 0, 0]))(torch.nn.Identity())
        assert ours == {"loss": pytest.approx((3 * math.log(4 / 3) + math.log(4)) / 4), "accuracy": 0.75}

    def test_agrees_with_sklearn(self):
        model, (X, y) = classifier()
        with training.evaluation(model):
            probabilities = model(X).softmax(dim=1)
        ours = training.classification_metrics(X, y)(model.train())
        assert ours["accuracy"] == sklearn.metrics.accuracy_score(y, probabilities.argmax(dim=1))
        assert ours["loss"] == pytest.approx(sklearn.metrics.log_loss(y, probabilities), rel=1e-9)
        assert type(ours["loss"]) is float and type(ours["accuracy"]) is float and all(modes(model))

    @pytest.mark.usefixtures("unchecked")
    def test_bad_lengths(self):
        with pytest.raises(ValueError, match=r"got lengths \[3, 2\]"):
            training.classification_metrics(torch.ones(3, 2), torch.tensor([0, 1]))


class TestGradientNorms:
    def test_closed_form(self):
        # ½ mean (w·x - y)²: gradient Xᵀ(Xw - y)/n
        X, y, model = gaussian(0, 9, 3), gaussian(1, 9), torch.nn.Linear(3, 1, bias=False).double()
        ours = training.gradient_norms(model, squares, X, y)
        w = model.weight.detach()[0]
        assert list(ours) == ["weight"] and type(ours["weight"]) is float
        assert ours["weight"] == pytest.approx(float((X.T @ (X @ w - y) / 9).norm()), rel=1e-12)

    def test_agrees_with_backward(self):
        model, data = classifier()
        ours = training.gradient_norms(model, training.cross_entropy, *data)
        training.cross_entropy(model, *data).backward()
        assert ours.keys() == dict(model.named_parameters()).keys()
        for name, parameter in model.named_parameters():
            assert ours[name] == pytest.approx(float(parameter.grad.norm()), rel=1e-10, abs=1e-14)

    def test_leaves_gradients_alone(self):
        model = line()
        training.gradient_norms(model, mean_output, *ones(2))
        assert model.weight.grad is None
        model.weight.grad = kept = torch.full((1, 1), 7.0, dtype=torch.float64)
        training.gradient_norms(model, mean_output, *ones(2))
        assert model.weight.grad is kept and float(kept) == 7

    def test_unused_parameters_have_gradient_zero(self):
        model = torch.nn.Linear(2, 1).double()
        ours = training.gradient_norms(model, lambda model, X: (X @ model.weight[0]).mean(), gaussian(0, 3, 2))
        assert ours["bias"] == 0 and ours["weight"] > 0


class TestEvaluation:
    @pytest.mark.parametrize("error", [False, True])
    def test_puts_back_every_mode(self, error):
        model, _ = classifier()
        model.train().blocks[0].g[1].eval()
        before = modes(model)
        try:
            with training.evaluation(model) as evaluated:
                assert evaluated is model and not any(modes(model)) and not torch.is_grad_enabled()
                if error:
                    raise KeyError
        except KeyError:
            pass
        assert modes(model) == before and sum(before) == len(before) - 1 and torch.is_grad_enabled()


def test_gradient_norms_do_not_underflow_in_single_precision():
    # L = c Σw with c = 1e-30: the gradient is c in each of 16 entries, its norm 4c, and c² = 1e-60 is no float32
    model = torch.nn.Linear(16, 1, bias=False)
    norms = training.gradient_norms(model, lambda model, c: c * model.weight.sum(), torch.tensor(1e-30))
    assert norms["weight"] == pytest.approx(4e-30, rel=1e-6)


def test_a_person_sees_the_progress_and_a_program_does_not(monkeypatch, capsys):
    def run():
        model = line()
        training.fit(model, mean_output, ones(4), sgd(model), epochs=2, batch_size=2, generator=seeded(0))
        return capsys.readouterr().err

    assert run() == ""
    monkeypatch.delenv("COURSEKIT_UNATTENDED")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert "training" in run()


def test_the_cosine_schedule_goes_from_one_to_zero():
    # ½(1 + cos πp): 1, ½(1 + 1/√2), ½, 0
    found = [training.cosine(p) for p in (0.0, 0.25, 0.5, 1.0)]
    assert found == pytest.approx([1, 0.5 * (1 + 0.5**0.5), 0.5, 0])
