"""The command line: each command parses, calls and prints.

Exit codes: 0 done; 1 an error, in one message; 2 a command that does not parse; 3 done, but some input rows were
rejected; 129, 130, 143 stopped by SIGHUP, SIGINT, SIGTERM; 141 the reader of standard output has gone (`| head`)."""

import os

EXIT_REJECTED, EXIT_BROKEN_PIPE = 3, 141


def main() -> None:
    """Entry point of `rprm`."""
    try:
        import signal

        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it was started to ignore it
            signal.signal(signal.SIGINT, _stopped)
    except KeyboardInterrupt:
        _stopped()
    # Weights are converted and loaded under our own progress line.
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # Threads of torch that spin while they wait make a busy machine several times slower; these sleep.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from rprm.cli.process import run_command

    run_command(_run)


def _stopped(*_: object) -> None:
    """The end by SIGINT until `process` has its own: what is half imported has nothing to close."""
    try:
        os.write(2, b"rprm: stopped by SIGINT; nothing was kept\n")
    finally:
        os._exit(130)


def _run() -> None:
    from rprm.cli.app import app

    app()
