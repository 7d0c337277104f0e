"""What every test may rely on, whatever ran before it and whatever runs beside it."""

from __future__ import annotations

import os
import random
import signal
import tempfile
from pathlib import Path

# Before torch and jax are imported; the processes that tests start inherit it.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"  # beside other load a second thread waits more than it works
os.environ["TQDM_DISABLE"] = "1"
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir(), f"inspo-jax-{os.getuid()}"))
)

# A shell's background job ignores it, and what tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch as th  # noqa: E402


@pytest.fixture(autouse=True)
def same_start():
    """One thread, and the same random numbers for each test."""
    th.set_num_threads(1)
    random.seed(0)
    np.random.seed(0)
    th.manual_seed(0)
