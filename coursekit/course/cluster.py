"""Executing notebooks on a Dask cluster."""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from coursekit.course import catalog
from coursekit.course.errors import CourseError
from coursekit.course.execution import Job, Result, isolated

if TYPE_CHECKING:
    from distributed import Client, Future

_TIMEOUT = "5s"


def execute(
    address: str, jobs: Sequence[Job], announce: Callable[[str], None]
) -> Generator[tuple[Job, Result], None, None]:
    """The results of jobs as they come back from the cluster whose scheduler has this address.

    A worker runs as many notebooks at a time as it has threads. A job whose worker died goes to another one, until as
    many workers have died over it as the scheduler allows (``distributed.scheduler.allowed-failures``); one that
    failed is not tried again. Leaving the iterator early cancels what is outstanding.
    """
    with _connected(address) as client:
        from distributed import as_completed

        threads = client.nthreads()
        at_once = sum(threads.values())
        announce(f"The cluster at {address} has {len(threads)} worker(s) for {at_once} notebook(s) at a time.")
        hashes = catalog.module_hashes()
        futures = {client.submit(_checked, job, hashes, pure=False): job for job in jobs}
        ids = {future.key: job.id for future, job in futures.items()}

        def watch(event: tuple[float, dict]) -> None:
            news = event[1]
            if news.get("action") == "remove-worker" and not news["expected"]:
                for key in ids.keys() & news["processing-tasks"]:
                    announce(f"{ids[key]}: its worker at {news['worker']} died")

        client.subscribe_topic("all", watch)
        try:
            for future in as_completed(futures, loop=client.loop):
                yield futures[future], _result(future)
        finally:
            client.unsubscribe_topic("all")


def _result(future: "Future") -> Result:
    from distributed import KilledWorker

    error = future.exception()
    if error is None:
        return future.result()
    if isinstance(error, KilledWorker):
        deaths, last = error.allowed_failures + 1, error.last_worker.address
        return Result(error=f"{deaths} worker(s) died over it, the last at {last}: see their logs")
    return Result(error=f"on the cluster: {type(error).__name__}: {error}")


@contextmanager
def _connected(address: str) -> Iterator["Client"]:
    try:
        from distributed import Client
    except ModuleNotFoundError as error:
        raise CourseError(
            f"{error.name} is missing; --scheduler needs `pip install -e '.[cluster]'` in the checkout"
        ) from error
    try:
        client = Client(address, timeout=_TIMEOUT, set_as_default=False)
    except (OSError, ValueError) as error:
        raise CourseError(f"no Dask scheduler answers at {address}: {error}") from error
    with client:
        yield client


def _checked(job: Job, hashes: dict[str, str]) -> Result:
    """Run a job on a worker, provided that it has the package that the client has."""
    here = catalog.module_hashes()
    if differing := sorted(name for name in here.keys() | hashes if here.get(name) != hashes.get(name)):
        return Result(error=f"the worker's coursekit differs in {', '.join(differing)}: update its checkout")
    return isolated(job)
