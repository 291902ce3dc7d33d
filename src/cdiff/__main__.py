"""`python -m cdiff`."""

from __future__ import annotations

import os
import sys

# Before torch is imported: OpenMP's threads spin while they wait, and on a CPU that other processes use too a training
# step took 30 times as long. A short spin is as fast on an idle machine and loses a few times at most on a busy one.
SPIN_COUNT = "10000"
# Also before torch is imported: without it MKL's sums depend on where in memory a matrix lies, and a resumed run's last
# bits with them. AUTO keeps the kernels of this CPU.
REPRODUCIBLE = "AUTO"


def entry() -> None:
    """The command's way in; its exit code is the process's."""
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
    os.environ.setdefault("MKL_CBWR", REPRODUCIBLE)
    from cdiff.cli import main

    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    entry()
