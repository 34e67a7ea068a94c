"""What every test stands on: one thread, hypothesis profiles, and ways past the shape checks."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import jaxtyping
import pytest
import torch
from hypothesis import HealthCheck, settings

# Two workers with a thread pool each would fight over two cores.
torch.set_num_threads(1)

settings.register_profile("dev", deadline=None, max_examples=30)
settings.register_profile(
    "ci",
    deadline=None,
    max_examples=20,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],  # speaks of the machine, not of the test
)
settings.register_profile("thorough", deadline=None, max_examples=500)
settings.load_profile(
    os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev")
)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Shapes are not checked, as for users: what is left to raise is tinyfn's own error."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.fixture
def fresh_python() -> Callable[..., str]:
    """Run Python in a process of its own, where shapes are not checked: what it printed.

    torch.compile needs one: it cannot trace the checks, and a failed trace can spoil its process.
    """
    tests = Path(__file__).parent
    path = os.pathsep.join([str(tests), str(tests.parent)])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}

    def run(*arguments: str) -> str:
        command = [sys.executable, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
