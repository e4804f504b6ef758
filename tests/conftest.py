import jaxtyping
import pytest
from hypothesis import settings

# The same examples in every run, and no deadline on a loaded machine
settings.register_profile("coursekit", deadline=None, derandomize=True)
settings.load_profile("coursekit")


@pytest.fixture
def unchecked():
    """Switch the test-suite's runtime shape checks off: what a user's malformed input meets is our own validation."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
