"""The environment of the lab's tests."""

from __future__ import annotations

import os

# No test may reach a model hub; a load that tries fails at once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# As the command line does: threads that wait do not spin.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if num_workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    # Tests that run side by side share the cores.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // num_workers)))
