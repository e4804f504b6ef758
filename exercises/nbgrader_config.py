"""nbgrader's settings: this folder is the course, each chapter an assignment (``nbgrader ...`` is run from here)."""

from pathlib import Path

STUDENTS = Path(__file__).resolve().parents[1] / "build" / "assignments"

c = get_config()  # noqa: F821, defined where nbgrader reads this file
c.CourseDirectory.course_id = "coursekit"
c.CourseDirectory.source_directory = "."  # the instructor's versions stand here, one folder a chapter
c.CourseDirectory.release_directory = str(STUDENTS)  # the student's versions
c.CourseDirectory.ignore = ["*.md", ".ipynb_checkpoints", "__pycache__"]  # the .md of a pair has the solutions in it
