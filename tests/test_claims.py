import numpy as np
import pytest

from coursekit import ClaimError, claim


def test_exact_claim_prints_its_numbers(capsys):
    claim("two and two", 2 + 2, equals=4)
    assert capsys.readouterr().out == "✓ two and two: measured 4; expected 4\n"


def test_statistical_claim_shows_digits_up_to_its_tolerance(capsys):
    claim("ESS/N equals its closed form", 0.7061234, equals=0.7063, se=0.0024)
    out = "✓ ESS/N equals its closed form: measured 0.706; expected 0.7063 ± 0.012 (5 s.e.)\n"
    assert capsys.readouterr().out == out


@pytest.mark.parametrize(
    ("measured", "expectation"),
    [
        (1.0, {"equals": 1.0 + 1e-16}),
        (1.04, {"equals": 1, "se": 0.01}),
        (1.04, {"equals": 1, "rtol": 0.05}),
        (-104, {"equals": -100, "rtol": 0.05}),
        (0.04, {"equals": 0, "atol": 0.05}),
        (2, {"below": 2}),
        (2.04, {"below": 2, "se": 0.01}),
        (2, {"above": 2}),
        (1.96, {"above": 2, "se": 0.01}),
        (-1.96, {"below": -2, "rtol": 0.05}),
        (1.5, {"between": (1, 2)}),
        (0.96, {"between": (1, 2), "atol": 0.05}),
        (np.arange(5), {"equals": np.arange(5)}),
        (np.eye(2), {"equals": [[1, 0], [0, 1]]}),
        (np.arange(5), {"below": 4}),
        ([1, 5], {"between": ([0, 4], [2, 6])}),
        (True, {"equals": True}),
    ],
)
def test_what_holds(measured, expectation):
    claim("holds", measured, **expectation)


@pytest.mark.parametrize(
    ("measured", "expectation"),
    [
        (1.06, {"equals": 1, "se": 0.01}),
        (0.94, {"equals": 1, "se": 0.01}),
        (1.06, {"equals": 1, "rtol": 0.05}),
        (1e-300, {"equals": 0}),
        (2.0001, {"below": 2}),
        (1.9999, {"above": 2}),
        (0.9, {"between": (1, 2)}),
        (2.1, {"between": (1, 2)}),
        ([0, 1, 2.5], {"equals": [0, 1, 2], "atol": 0.4}),
        (np.nan, {"equals": np.nan}),
        (np.nan, {"below": 1}),
        ([0, np.nan], {"above": -1}),
        (np.inf, {"equals": 1, "rtol": 0.5}),
        (1, {"equals": np.nan, "atol": 1}),
        (1, {"equals": 1, "se": np.nan}),
    ],
)
def test_what_does_not_hold(measured, expectation):
    with pytest.raises(ClaimError, match="the statement: measured"):
        claim("the statement", measured, **expectation)


def test_failure_names_statement_numbers_and_count():
    with pytest.raises(ClaimError, match=r"^law: measured 1, 3, 5; expected 1, 2, 3 ± 0.5; 2 of 3 entries fail$"):
        claim("law", [1, 3, 5], equals=[1, 2, 3], atol=0.5)


def test_long_arrays_show_their_extremes(capsys):
    claim("line", np.arange(9) + 1e-3, equals=np.arange(9), atol=0.01)
    assert capsys.readouterr().out == "✓ line: measured 9 values off by at most 0.001; expected 0 … 8 ± 0.01\n"
    claim("bounded", np.arange(9), below=np.arange(9) + 1)
    assert capsys.readouterr().out == "✓ bounded: measured at most 8 (9 values); bound ≤ 1 … 9\n"


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"equals": 1, "below": 2},
        {"equals": 1, "rtol": -1},
        {"equals": 1, "se": -1},
        {"between": (1, 2, 3)},
        {"equals": 1 + 5j},
    ],
)
def test_malformed_claims(arguments):
    with pytest.raises(ValueError, match=r"exactly one|negative|pair|real numbers"):
        claim("statement", 1, **arguments)


def test_empty_measurement_is_refused():
    with pytest.raises(ValueError, match="must not be empty"):
        claim("statement", [], equals=0)
