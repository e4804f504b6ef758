import shutil
from pathlib import Path

import pytest

from coursekit.course import runner
from coursekit.course.catalog import Course

HEADER = """---
kernelspec:
  display_name: Python 3
  language: python
  name: python3
---

"""
GOOD = (
    HEADER
    + """# Line

```{code-cell} ipython3
import matplotlib.pyplot as plt

import coursekit as ck
```

```{code-cell} ipython3
:tags: [parameters]

seed = 0
slope = 2.0
label = "x"
```

```{code-cell} ipython3
fig, ax = plt.subplots()
ax.plot([0, 1], [0, slope])
ck.savefig(fig, "01_first/line", alt="A straight line from the origin upwards.")
ck.claim("the slope is two", slope, equals=2)
```
"""
)
TABLE = """notebooks:
  - {id: "01_01", title: A line, file: 01_first/01_line, minutes: 5, sources: [nowhere], covers: none}
  - {id: "01_02", title: Another, file: 01_first/02_other, minutes: 5, sources: [nowhere], covers: none}
"""


def build(root: Path) -> Course:
    """A small course of two notebooks; the second is the first with another figure name."""
    folder = root / "notebooks" / "01_first"
    folder.mkdir(parents=True)
    (root / "notebooks" / "course.yml").write_text(TABLE)
    (folder / "01_line.md").write_text(GOOD)
    (folder / "02_other.md").write_text(GOOD.replace("01_first/line", "01_first/other"))
    return Course(root)


@pytest.fixture
def course(tmp_path, monkeypatch) -> Course:
    """The small course, nothing executed."""
    course = build(tmp_path / "checkout")
    monkeypatch.chdir(course.root)
    return course


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Course:
    """The small course with its first notebook executed; copy it, do not change it."""
    course = build(tmp_path_factory.mktemp("finished") / "checkout")
    assert not runner.run(course, [course.find("01_01")])[0].error
    return course


@pytest.fixture
def done(finished, tmp_path, monkeypatch) -> Course:
    """A private copy of `finished`."""
    shutil.copytree(finished.root, tmp_path / "done")
    monkeypatch.chdir(tmp_path / "done")
    return Course(tmp_path / "done")
