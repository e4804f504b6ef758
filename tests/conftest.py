import jaxtyping
import pytest


@pytest.fixture
def unchecked():
    """Switch the test-suite's runtime shape checks off: what a user's malformed input meets is our own validation."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
