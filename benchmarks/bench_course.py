"""The package and the course."""

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import memray
import pytest
from comparison import Agreement, Close, Work

from coursekit.course import catalog, runner


@dataclass(frozen=True)
class Script:
    """A fresh interpreter that runs some code; called, it gives the numbers that are printed."""

    code: str
    environment: dict[str, str] = field(default_factory=dict)

    def __call__(self) -> list[float]:
        command = [sys.executable, "-c", self.code]
        output = subprocess.run(command, env=os.environ | self.environment, stdout=subprocess.PIPE, check=True).stdout
        return [float(word) for word in output.split()]

    def memory(self) -> int:
        """Bytes at the peak, the interpreter itself not counted."""
        with tempfile.TemporaryDirectory() as folder:
            record = Path(folder) / "allocations"
            tracked = f"import memray\nwith memray.Tracker({str(record)!r}):\n    exec({self.code!r})"
            Script(tracked, self.environment)()
            return memray.FileReader(record).metadata.peak_memory


def bench_import(compare):
    code = "import coursekit; print(len(dir(coursekit)))"
    compare(
        "import coursekit",
        lambda _: Work(Script(code), {"with EAGER_IMPORT=1": Script(code, {"EAGER_IMPORT": "1"})}, Script("pass")),
        (1,),
        unit="",
        agree=Agreement("the same names", Close(rtol=0.0)),
        floor="an empty interpreter",
        growth=None,
        memory=Script.memory,
    )


def bench_first_kernel(compare):
    """To the end of the first call, with all that has to be imported for it."""
    call = "print(*{}(__import__('numpy').eye(30)[:, :20] * 2, 5)[1])"
    ours = "from coursekit.linalg import randomized_svd; f = lambda A, k: (0, randomized_svd(A, k).s); " + call.format(
        "f"
    )
    theirs = "from sklearn.utils.extmath import randomized_svd; " + call.format("randomized_svd")
    compare(
        "importing and calling randomized_svd",
        lambda _: Work(Script(ours), {"scikit-learn": Script(theirs)}, Script("import numpy, scipy.linalg")),
        (1,),
        unit="",
        agree=Close(rtol=1e-12),
        floor="importing numpy and scipy.linalg",
        growth=None,
        memory=Script.memory,
    )


def bench_whole_course(record_course, quick, tmp_path):
    if quick:
        pytest.skip("six minutes: only in the whole run")
    course = catalog.open_course()
    start = time.perf_counter()
    outcomes = runner.run(course, course.entries, output_dir=tmp_path, jobs=os.cpu_count() or 1)
    seconds = time.perf_counter() - start
    assert not [outcome for outcome in outcomes if outcome.error]
    record_course(outcomes, seconds)
