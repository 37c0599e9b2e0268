"""What `accelerate launch` starts in the tests: the command line, with torch held to one thread."""

from __future__ import annotations

import sys


def main() -> None:
    import torch

    torch.set_num_threads(1)
    from rprm.cli.train import app
    from rprm.errors import RprmError

    try:
        app()
    except RprmError as error:
        print(f"rprm: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
