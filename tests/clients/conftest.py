"""Installs the clients, once, and starts what they are pointed at."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from tests.clients.driving import Driver, Run
from tests.clients.target import Target
from tests.support.lab import Lab

HERE = Path(__file__).parent
PROJECT = HERE.parent.parent
CACHE = PROJECT / ".cache" / "clients"
# The first test of each client installs it.
INSTALL_LIMIT = 300


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each of these tests the time to install its client."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.timeout(INSTALL_LIMIT))


def _installed(kind: str, files: list[Path], install: Callable[[Path], None]) -> Path:
    """The directory into which `files` are installed; whoever comes first does it, and others wait for it."""
    content = b"".join(path.read_bytes() for path in files) + sys.version.encode()
    directory = CACHE / f"{kind}-{hashlib.sha256(content).hexdigest()[:16]}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{directory.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = directory / "installed"
        if not done.exists():
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir()
            install(directory)
            done.touch()
    return directory


def _run(*command: str | Path, cwd: Path) -> None:
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=INSTALL_LIMIT)
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"


def _python_with(kind: str, requirements: Path) -> Path:
    def install(directory: Path) -> None:
        _run(sys.executable, "-m", "venv", directory / "venv", cwd=directory)
        python = directory / "venv" / "bin" / "python"
        _run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--requirement", requirements, cwd=directory)

    return _installed(kind, [requirements], install) / "venv" / "bin" / "python"


@pytest.fixture(scope="session")
def python_with_clients() -> Path:
    """A Python in which the Python clients are installed."""
    return _python_with("python", HERE / "requirements.txt")


@pytest.fixture(scope="session")
def python_with_fastapi() -> Path:
    """A Python in which FastAPI and the libraries that verify webhooks are installed."""
    return _python_with("webhooks", HERE / "webhook-requirements.txt")


@pytest.fixture(scope="session")
def node_with_clients() -> Path:
    """A directory in which the Node clients are installed."""
    manifests = [HERE / "node" / "package.json", HERE / "node" / "package-lock.json"]

    def install(directory: Path) -> None:
        if shutil.which("npm") is None:
            _run("sh", PROJECT / "packaging" / "install-debian.sh", "nodejs", "npm", cwd=directory)
        for manifest in manifests:
            shutil.copy(manifest, directory)
        _run("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", cwd=directory)

    return _installed("node", manifests, install)


@pytest.fixture
async def runs() -> AsyncIterator[list[Run]]:
    """The drivers that a test starts; all end with it."""
    runs: list[Run] = []
    yield runs
    for run in runs:
        await run.close()


@pytest.fixture
def python_driver(python_with_clients: Path, tmp_path: Path, runs: list[Run]) -> Callable[[str], Driver]:
    """Drivers in Python, by their file's name."""
    return lambda program: Driver(python_with_clients, program, tmp_path, runs)


@pytest.fixture
def node_driver(node_with_clients: Path, runs: list[Run]) -> Callable[[str], Driver]:
    """Drivers in JavaScript, by their file's name; they find their client from the directory they run in."""
    return lambda program: Driver(Path(shutil.which("node") or "node"), program, node_with_clients, runs)


@pytest_asyncio.fixture(params=["simulator", "gateway"], scope="module", loop_scope="module")
async def target(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Target]:
    """One simulated ComfyUI alone, which shows what the client can do, or a gateway in front of three.

    It is there for all tests of a client, one after the other. Their module's SIMULATOR_OPTIONS are the simulators'.
    """
    options: tuple[str, ...] = getattr(request.module, "SIMULATOR_OPTIONS", ())
    lab = Lab(tmp_path_factory.mktemp("target"))
    try:
        if request.param == "simulator":
            simulator = await lab.simulator(*options)
            yield Target(simulator.url, is_gateway=False, simulators=(simulator,))
        else:
            simulators = await lab.simulators(3, *options)
            gateway = await lab.gateway(*simulators)
            yield Target(gateway.url, is_gateway=True, simulators=tuple(simulators))
    finally:
        await lab.close()
