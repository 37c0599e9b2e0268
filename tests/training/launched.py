"""What `accelerate launch` starts in the tests: the command line, with torch held to one thread."""

from __future__ import annotations

import sys


def main() -> None:
    import torch

    torch.set_num_threads(1)
    from rprm.cli import main as rprm

    sys.argv = ["rprm", "train", *sys.argv[1:]]
    rprm()


if __name__ == "__main__":
    main()
