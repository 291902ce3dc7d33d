"""`python -m cdiff`."""

from __future__ import annotations

import os
import sys

# What the numerical libraries read when torch is imported.
ENVIRONMENT = {
    # OpenMP's threads spin while they wait, and on a CPU that other processes use too a training step took 30 times as
    # long. A short spin is as fast on an idle machine and loses a few times at most on a busy one.
    "GOMP_SPINCOUNT": "10000",
    # Without it MKL's sums depend on where in memory a matrix lies, and a resumed run's last bits with them. AUTO keeps
    # the kernels of this CPU.
    "MKL_CBWR": "AUTO",
}


def set_environment() -> None:
    """Before torch is imported. What the user has set stands."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def entry() -> None:
    """The command's way in; its exit code is the process's."""
    set_environment()
    from cdiff.cli import main

    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    entry()
