"""The console script `coursekit`."""

import os
import sys
from pathlib import Path

try:
    import click
    from rich.console import Console
    from rich.table import Table

    from coursekit.course import catalog, doctor, profiles, runner
except ModuleNotFoundError as error:
    sys.exit(f"coursekit: {error.name} is missing; the course tools need `pip install -e '.[course]'` in the checkout")

from coursekit.course.errors import CourseError

console = Console(highlight=False, soft_wrap=True)


class _Group(click.Group):
    """Shows a CourseError as one message and exits with status 1."""

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except CourseError as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name=doctor.DISTRIBUTION)
def main() -> None:
    """Run and check the notebooks of the course."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # a console that lacks ✓ shows ?


@main.command("list")
@click.option("--markdown", is_flag=True, help="Print the README's table.")
@click.option("--profiles", "sets", is_flag=True, help="Show the named parameter sets instead.")
def list_notebooks(markdown: bool, sets: bool) -> None:
    """Show the table of contents."""
    course = catalog.open_course()
    if markdown:
        click.echo(catalog.readme_table(course))
        return
    if sets:
        table = Table("profile", "description", "notebooks")
        for profile in profiles.read_profiles(course).values():
            table.add_row(profile.name, profile.description, ", ".join(profile.parameters))
    else:
        table = Table("id", "title", "minutes", "sources", "covers")
        for entry in course.entries:
            table.add_row(entry.id, entry.title, str(entry.minutes), "; ".join(entry.sources), entry.covers)
    console.print(table)


@main.command()
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("-p", "--param", "given", nargs=2, multiple=True, metavar="NAME VALUE", help="Override a parameter.")
@click.option("--profile", metavar="NAME", help="Use a named parameter set (`coursekit list --profiles`).")
@click.option("--output-dir", type=click.Path(file_okay=False, path_type=Path), help="Leave the checkout as it is.")
@click.option("--format", "figure_format", type=click.Choice(("png", "pdf", "svg")), default="png", show_default=True)
@click.option("--force", is_flag=True, help="Without IDs: run every notebook, stale or not.")
@click.option("-j", "--jobs", type=click.IntRange(1), help="Notebooks at once [all cores].")
@click.option("--scheduler", default="", metavar="ADDRESS", help="Run on the Dask cluster at tcp://HOST:PORT.")
def run(ids, given, profile, output_dir, figure_format, force, jobs, scheduler) -> None:
    """Execute notebooks and regenerate their figures.

    With IDs, those and their later parts (03_03 brings 03_03b with it); without, all that are stale, or all that the
    profile changes. Runs with other parameters never replace the notebooks of the checkout: they go to --output-dir
    (default: out/ in the checkout, which git ignores, or out/NAME for a profile). On a cluster each worker runs as
    many notebooks at a time as it has threads, so -j says nothing there.
    """
    course = catalog.open_course()
    if given and len(ids) != 1:
        raise click.UsageError("-p needs exactly one notebook ID")
    if scheduler and jobs:
        raise click.UsageError("-j is for this machine; on a cluster the workers' threads decide")
    entries = course.select(ids)
    if not ids:
        entries = [entry for entry in course.entries if force or profile or catalog.staleness(entry)]
    if not entries:
        catalog.write_index(course)
        console.print(f"Nothing is stale: {len(course.entries)} notebook(s) up to date.")
        return
    parameters = profiles.overrides(course, entries, profile, given)
    if given or profile:
        entries = [entry for entry in entries if entry.id in parameters]
        output_dir = output_dir or course.root / "out" / (profile or "")
    if not entries:
        raise CourseError(f"the profile {profile} changes nothing in {', '.join(ids)}: the figures are those in figs/")
    console.print(f"Running {', '.join(entry.id for entry in entries)} …")
    outcomes = runner.run(
        course,
        entries,
        parameters=parameters,
        output_dir=output_dir,
        figure_format=figure_format,
        jobs=min(jobs or os.cpu_count() or 1, len(entries)),
        scheduler=scheduler,
        report=_report,
        announce=lambda text: console.print(text, markup=False),
    )
    table = Table("id", "title", "result", "seconds", "peak MB", "figures", "claims")
    for outcome in outcomes:
        result = "[red]failed[/red]" if outcome.error else "ok"
        memory = f"{outcome.memory / 1e6:.0f}" if outcome.memory else ""
        numbers = (f"{outcome.seconds:.1f}", memory, str(outcome.n_figures), str(outcome.n_claims))
        table.add_row(outcome.id, course.find(outcome.id).title, result, *numbers)
    console.print(table)
    if failed := [outcome.id for outcome in outcomes if outcome.error]:
        raise click.ClickException(f"{len(failed)} of {len(outcomes)} failed: {', '.join(failed)}")
    console.print(f"Results are in {'the checkout' if output_dir is None else output_dir}.")


def _report(outcome: runner.Outcome) -> None:
    if outcome.error:
        console.print(f"✗ {outcome.id} failed after {outcome.seconds:.1f} s: ", outcome.error, markup=False)
    else:
        console.print(f"✓ {outcome.id} {outcome.seconds:.1f} s")


@main.command()
def status() -> None:
    """Show which notebooks are stale, and why."""
    table = Table("id", "title", "state")
    for entry in catalog.open_course().entries:
        reasons = catalog.staleness(entry)
        table.add_row(
            entry.id, entry.title, f"[yellow]stale[/yellow]: {'; '.join(reasons)}" if reasons else "up to date"
        )
    console.print(table)


@main.command("doctor")
def examine() -> None:
    """Check the installation; each failure comes with its fix."""
    failures = 0
    for check in doctor.examine():
        console.print(f"{'✓' if check.ok else '✗'} {check.name}: {check.detail}", markup=False)
        if not check.ok:
            failures += 1
            console.print(f"    fix: {check.fix}", markup=False)
    if failures:
        raise click.ClickException(f"{failures} check(s) failed")
