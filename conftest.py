"""Set-up of every test run: runtime shape checks, and an environment in which nothing writes to the checkout."""

import os
from pathlib import Path

from jaxtyping import install_import_hook

import tests.typechecker  # noqa: F401, named below

# Signatures are checked at run time (shapes and dtypes) in everything of coursekit that is imported from here on
install_import_hook("coursekit", "tests.typechecker.check")

from coursekit.course.execution import KERNEL_ENVIRONMENT  # noqa: E402

os.environ.update(KERNEL_ENVIRONMENT)
os.environ.setdefault("COURSEKIT_FIGS", str(Path(__file__).parent / "build" / "figs"))  # of notebooks run by nbval
