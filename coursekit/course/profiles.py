"""Parameters of notebooks: their defaults, overrides of them, and named sets of overrides (notebooks/profiles.yml)."""

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from coursekit.course import catalog
from coursekit.course.catalog import Course, Entry
from coursekit.course.errors import CourseError


@dataclass(frozen=True)
class Profile:
    """A named set of parameters: for each notebook id those that it overrides."""

    name: str
    description: str
    parameters: dict[str, dict[str, Any]]


def read_profiles(course: Course) -> dict[str, Profile]:
    """The parameter sets of notebooks/profiles.yml, by name; values are checked where they are used.

    Raises CourseError if the file does not have the form it should have, or names a notebook that there is not.
    """
    path = course.root / "notebooks" / "profiles.yml"
    try:
        rows = yaml.safe_load(path.read_text(encoding="utf-8"))
        profiles = {
            name: Profile(name, str(row["description"]), {id: dict(values) for id, values in row["notebooks"].items()})
            for name, row in rows.items()
        }
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError, KeyError, AttributeError, ValueError) as error:
        raise CourseError(f"{path} is not a valid file of profiles: {type(error).__name__}: {error}") from error
    for profile in profiles.values():
        for notebook_id in profile.parameters:
            course.find(notebook_id)
    return profiles


def find_profile(course: Course, name: str) -> Profile:
    """The profile of that name, or CourseError that names those there are."""
    profiles = read_profiles(course)
    if name not in profiles:
        raise CourseError(f"there is no profile {name!r}; there is {', '.join(profiles) or 'none'}")
    return profiles[name]


def overrides(
    course: Course, entries: Sequence[Entry], profile: str | None, given: Sequence[tuple[str, str]]
) -> dict[str, dict[str, Any]]:
    """The parameters that change in each notebook, by id: those of a profile, and over them those given as text.

    A notebook where nothing changes is left out. What is given is meant for the first of `entries`, and for its later
    parts if they have parameters of all these names.

    Raises CourseError if there is no such profile, or a name or a value does not suit its notebook.
    """
    values = dict(find_profile(course, profile).parameters) if profile else {}
    values = {entry.id: values[entry.id] for entry in entries if entry.id in values}
    for entry in entries:
        check_parameters(entry, values.get(entry.id, {}))
    if given:
        parsed = parse_parameters(entries[0], given)
        for entry in entries:
            if parsed.keys() <= default_parameters(entry).keys():
                values[entry.id] = values.get(entry.id, {}) | parsed
    return values


def default_parameters(entry: Entry) -> dict[str, Any]:
    """Names and values in the notebook's `parameters` cell."""
    notebook = catalog.read_source(entry)
    cells = [cell.source for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    values: dict[str, Any] = {}
    try:
        exec("\n".join(cells), values)  # assignments of constants, and expressions of them such as 2**17
    except Exception as error:
        raise CourseError(f"the parameters cell of notebook {entry.id} does not run: {error}") from error
    return {name: value for name, value in values.items() if name != "__builtins__"}


def parse_parameters(entry: Entry, given: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Overrides given as text, as checked Python values."""
    defaults = default_parameters(entry)
    values = {name: text if isinstance(defaults.get(name), str) else _literal(text) for name, text in given}
    check_parameters(entry, values)
    return values


def check_parameters(entry: Entry, values: dict[str, Any]) -> None:
    """Raise CourseError for a name that the notebook does not have, or a value that is not of the default's kind."""
    defaults = default_parameters(entry)
    for name, value in values.items():
        if name not in defaults:
            raise CourseError(f"notebook {entry.id} has no parameter {name!r}; it has {', '.join(defaults)}")
        if not _alike(value, defaults[name]):
            raise CourseError(f"parameter {name} of notebook {entry.id} is like {defaults[name]!r}, got {value!r}")


def _alike(value: Any, default: Any) -> bool:
    """Whether a value can stand for the default: whole numbers for such, lists and tuples for either."""
    if isinstance(default, list | tuple):
        return isinstance(value, list | tuple) and all(any(_alike(v, d) for d in default) for v in value)
    if isinstance(default, float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is type(default)


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
