"""Information measures of discrete and Gaussian laws, their estimates, and the worth of a classifier's probabilities.

A pmf lies along the last axis, leading axes broadcast; logarithms are natural, base=2 gives bits. Zeros are exact:
0 log 0 = 0, and a divergence is inf where p > 0 = q. A pmf may miss the sum 1 by 1e-6 (softmax in float32); it is then
divided by its sum. Where probabilities underflow, the functions `..._from_logs` take their logarithms.
"""

from coursekit.information._classifiers import (
    ClassifierInformation,
    Reliability,
    TemperatureFit,
    Uncertainty,
    classifier_information,
    fit_temperature,
    predictive_uncertainty,
    reliability,
)
from coursekit.information._estimates import (
    IndependenceTest,
    InformationEstimate,
    entropy_estimate,
    expected_plug_in_entropy,
    independence_test,
    mutual_information_estimate,
)
from coursekit.information._measures import (
    conditional_entropy,
    cross_entropy,
    entropy,
    entropy_from_logs,
    gaussian_entropy,
    gaussian_kl,
    js,
    kl,
    kl_from_logs,
    mutual_information,
    total_variation,
)

__all__ = [
    "ClassifierInformation",
    "IndependenceTest",
    "InformationEstimate",
    "Reliability",
    "TemperatureFit",
    "Uncertainty",
    "classifier_information",
    "conditional_entropy",
    "cross_entropy",
    "entropy",
    "entropy_estimate",
    "entropy_from_logs",
    "expected_plug_in_entropy",
    "fit_temperature",
    "gaussian_entropy",
    "gaussian_kl",
    "independence_test",
    "js",
    "kl",
    "kl_from_logs",
    "mutual_information",
    "mutual_information_estimate",
    "predictive_uncertainty",
    "reliability",
    "total_variation",
]
