"""The command line: each command parses, calls and prints.

Exit codes: 0 done; 1 an error, in one message; 2 a command that does not parse; 3 done, but some input rows were
rejected; 130 interrupted."""

from __future__ import annotations

import os
import sys

from rprm.showing import guard, one_line

EXIT_REJECTED = 3


def main() -> None:
    """Entry point of `rprm`."""
    # Weights are converted and loaded under our own progress line.
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # Threads of torch that spin while they wait make a busy machine several times slower; these sleep.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if sys.platform == "win32":
        # There a pipe or a file would take the code page of the country, which has no bars and no mathematics.
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(encoding="utf-8")
    guard()
    from rprm.cli.app import app
    from rprm.errors import RprmError

    try:
        app()
    except RprmError as error:
        sys.exit(f"rprm: {error}")
    except (FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
        # Of a path that was given. Other errors of the system may be faults of ours.
        sys.exit(one_line(f"rprm: {error.filename}: {error.strerror}"))
    except KeyboardInterrupt:
        print("rprm: interrupted; the same command with the same --output resumes from here", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of standard output has gone (`| head`): that is no error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
