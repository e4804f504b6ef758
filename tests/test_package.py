"""The package as users get it: import cost, laziness, dependencies, the wheel, the README."""

import ast
import os
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from coursekit.course import catalog

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# names on conda-forge that differ from those on the Python index
CONDA_NAMES = {"torch": "pytorch-cpu"}


def python(code, **environment):
    """Output of a fresh interpreter."""
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | environment, check=False
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_import_takes_less_than_a_tenth_of_a_second():
    code = "import time; t = time.perf_counter(); import coursekit; print(time.perf_counter() - t)"
    assert min(float(python(code)) for _ in range(5)) < 0.1


def test_import_is_lazy():
    code = "import coursekit as ck, sys; {}; print(*sys.modules)"
    heavy = {"numpy", "scipy", "torch", "matplotlib", "IPython", "papermill"}
    assert not heavy & set(python(code.format("pass")).split())
    loaded = set(python(code.format("ck.linalg.svd")).split())
    assert "scipy" in loaded and not loaded & {"torch", "matplotlib", "IPython", "papermill"}
    assert not set(python(code.format("ck.data.mnist")).split()) & {"torch", "matplotlib"}


SERVICES = {"plotting", "data", "claims", "course", "progress"}
PACKAGE = ROOT / "coursekit"
KERNELS = sorted(
    path
    for path in PACKAGE.rglob("*.py")
    if path.relative_to(PACKAGE).with_suffix("").parts[0] not in {"__init__", *SERVICES}
)


@pytest.mark.parametrize("path", KERNELS, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_kernels_import_no_service_and_no_matplotlib(path):
    imported = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = "coursekit" if node.level else node.module
            imported |= {package, *(f"{package}.{alias.name}" for alias in node.names)}
    # a training loop may show its progress
    assert not imported & {f"coursekit.{service}" for service in SERVICES - {"progress"}}
    assert not any(name.split(".")[0] in {"matplotlib", "IPython"} for name in imported)


def ranges(*extras):
    """The requirements of the package with these extras, other than itself."""
    texts = PROJECT["dependencies"] + [text for extra in extras for text in PROJECT["optional-dependencies"][extra]]
    return [requirement for text in texts if (requirement := Requirement(text)).name != PROJECT["name"]]


def test_conda_environment_names_the_same_packages_and_ranges():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    conda = {}
    *specs, by_pip = environment["dependencies"]
    for spec in specs:
        if spec != "pip":
            name, _, version = spec.partition(" ")
            conda[name] = version
    expected = {"python": PROJECT["requires-python"]}
    marked = []  # conda has no markers
    for requirement in ranges("course", "dev", "bench", "cluster"):
        if requirement.marker:
            marked.append(requirement)
        else:
            expected[CONDA_NAMES.get(requirement.name, requirement.name)] = str(requirement.specifier)
    assert conda == expected
    assert [Requirement(text) for text in by_pip["pip"] if text != "-e ."] == marked
    assert environment["channels"] == ["conda-forge"]


def test_constraints_pin_everything_and_satisfy_the_ranges():
    pins = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            (version,) = requirement.specifier
            assert version.operator == "==" and "+" not in version.version, line
            pins[requirement.name.lower().replace("_", "-")] = version.version
    for requirement in ranges(*PROJECT["optional-dependencies"]):
        assert requirement.specifier.contains(pins[requirement.name.lower().replace("_", "-")]), requirement
    assert pins["torch"] == "2.13.0" and pins["torchvision"] == "0.28.0"


def test_readme_table_is_in_step():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text.partition(catalog.TABLE_START)[2].partition(catalog.TABLE_END)[0]
    assert table.strip() == catalog.readme_table(catalog.open_course(ROOT))


def test_readers_are_not_sent_to_the_foreign_package():
    for path in (*ROOT.glob("*.md"), *(ROOT / "notebooks").rglob("*.md")):
        assert "pip install coursekit" not in path.read_text(encoding="utf-8"), path


@pytest.fixture(scope="module")
def clean_environment(tmp_path_factory):
    """A new virtual environment with nothing but the built wheel and what its metadata asks for."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, ROOT], check=True)
    (wheel,) = folder.glob("mathgenai_coursekit-*.whl")
    venv.create(folder / "venv", with_pip=True)
    scripts = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
    subprocess.run(
        [scripts / "python", *pip[1:], "install", "-c", ROOT / "constraints.txt", f"{wheel}[course]"], check=True
    )
    return scripts, folder


class TestWheel:
    def test_imports_and_computes_away_from_the_checkout(self, clean_environment):
        scripts, folder = clean_environment
        code = "import coursekit as ck; print(ck.__file__, ck.linalg.svd([[3.0, 0.0], [0.0, 4.0]]).s)"
        out = subprocess.run(
            [scripts / "python", "-c", code], cwd=folder, capture_output=True, text=True, check=True
        ).stdout
        assert "site-packages" in out and "[4. 3.]" in out

    def test_doctor_is_content(self, clean_environment):
        scripts, folder = clean_environment
        run = subprocess.run([scripts / "coursekit", "doctor"], cwd=folder, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stdout + run.stderr
        assert "no checkout here" in run.stdout

    def test_list_outside_a_checkout_says_so(self, clean_environment):
        scripts, folder = clean_environment
        run = subprocess.run([scripts / "coursekit", "list"], cwd=folder, capture_output=True, text=True, check=False)
        assert run.returncode == 1 and "run this inside a clone of the course" in run.stderr
