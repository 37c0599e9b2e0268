"""A warm Python: the command line, and where wanted torch with its libraries, are imported once, and each command is a
fork of that process.

The import of torch, transformers and TRL takes ten seconds of a processor, that of the command line one: most of what a
command on a tiny or a scripted model takes. A fork is a process as any other: its own environment, folder and files,
killed and waited for by its id, and it ends as an interpreter ends. What a test claims of the start itself (what is
imported when, variables that are read at an import, thread counts) takes an interpreter of its own.

    done = warm_cli().run([sys.executable, "-m", "rprm", "judge", ...])
    with warm_torch().start([sys.executable, "script.py", ...]) as process: ...
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

#: Variable with the address of the warm process: the stages of a command that has it are forks as well.
_STAGES = "RPRM_TESTS_WARM_STAGES"


class Process:
    """What `subprocess.Popen` is to a child, for a fork of the warm process; it is killed when its starter is gone."""

    def __init__(
        self, address: str, command: Sequence[str], *, stdin: Any = None, stdout: Any = None, stderr: Any = None,
        env: Mapping[str, str] | None = None, process_group: int | None = None, preexec_fn: Any = None,
    ) -> None:  # fmt: skip
        # Without `preexec_fn`: stages see there that they heed their parent, and end with it.
        request: dict[str, Any] = {"words": list(command[1:]), "env": dict(env or os.environ), "cwd": str(Path.cwd())}
        request["group"] = process_group
        self.args = command
        self.returncode: int | None = None
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(address)
        with open(os.devnull, "r+b", buffering=0) as nothing:

            def number(stream: Any, inherited: int) -> int:
                if stream is None:
                    return inherited
                return nothing.fileno() if stream == subprocess.DEVNULL else stream.fileno()

            numbers = [number(stdin, 0), number(stdout, 1)]
            numbers.append(numbers[1] if stderr == subprocess.STDOUT else number(stderr, 2))
            socket.send_fds(self._connection, [b"\n"], numbers)
            self._connection.sendall(json.dumps(request).encode() + b"\n")
            self._answers = self._connection.makefile("rb")
            self.pid = int(self._answers.readline())

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._connection], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(list(self.args), timeout or 0.0)
            self.returncode = int(self._answers.readline())
            self._answers.close()
            self._connection.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *exception: object) -> None:
        self.wait()


class Warm:
    """Commands as forks of the warm process at `address`; without one, as processes of their own."""

    def __init__(self, address: str | None) -> None:
        self.address = address

    def start(self, command: Sequence[str], **options: Any) -> Any:
        """As `subprocess.Popen`, without pipes."""
        return Process(self.address, command, **options) if self.address else subprocess.Popen(command, **options)

    def run(
        self, command: Sequence[str], *, input: str | None = None, env: Mapping[str, str] | None = None,
        timeout: float = 240,
    ) -> subprocess.CompletedProcess[str]:  # fmt: skip
        """As `subprocess.run` with `capture_output` and `text`."""
        with (
            tempfile.TemporaryFile("w+") as given,
            tempfile.TemporaryFile("w+") as out,
            tempfile.TemporaryFile("w+") as err,
        ):
            given.write(input or "")
            given.seek(0)
            process = self.start(command, stdin=given, stdout=out, stderr=err, env=env)
            try:
                code = process.wait(timeout)
            except BaseException:
                process.kill()
                process.wait()
                raise
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess(list(command), code, out.read(), err.read())

    def take_stages(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let the stages of `evolve` and of the lab be forks, and theirs."""
        monkeypatch.setattr("rprm.subcommands.subprocess", self.subprocess_module())
        if self.address:
            monkeypatch.setenv(_STAGES, self.address)

    def subprocess_module(self) -> Any:
        """In place of the module that `rprm.subcommands` starts stages by."""

        def popen(command: Sequence[str], **options: Any) -> Any:
            own = self.start if command[0] == sys.executable else subprocess.Popen
            return own(command, **options)

        return SimpleNamespace(**vars(subprocess) | {"Popen": popen})


@functools.cache
def warm_cli() -> Warm:
    """With the command line, started at the first call; it ends with this process."""
    return _start("cli")


@functools.cache
def warm_torch() -> Warm:
    """With torch, transformers, TRL and the command line; started at the first call, it ends with this process."""
    return _start("torch")


def _start(imports: str) -> Warm:
    if sys.platform != "linux":
        return Warm(None)
    # Short: the address of a socket has at most a hundred characters.
    address = str(Path(tempfile.mkdtemp(prefix="warm-")) / "s")
    server = subprocess.Popen(
        [sys.executable, __file__, address, imports], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"},
    )  # fmt: skip
    assert server.stdout is not None
    assert server.stdout.readline() == b"ready\n", "the warm process did not start"
    server.stdout.close()
    # It ends at the end of its input.
    atexit.register(server.communicate)
    return Warm(address)


def _import_cli() -> None:
    import openai  # noqa: F401

    import rprm.cli
    import rprm.engines.scripted
    import rprm.report.measures
    import rprm.report.searches
    import rprm.rewarders.rprm
    import rprm.runs
    import rprm.search.measure

    for module in pkgutil.iter_modules(rprm.cli.__path__, "rprm.cli."):
        importlib.import_module(module.name)


def _import_torch() -> None:
    import datasets.table  # noqa: F401
    import peft  # noqa: F401
    import torch
    from transformers import (  # noqa: F401
        AutoModelForCausalLM,
        AutoTokenizer,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
        Qwen2ForCausalLM,
        Trainer,
    )
    from trl import DPOTrainer, GRPOTrainer, SFTTrainer  # noqa: F401

    torch.set_num_threads(1)


def _serve(address: str) -> dict[str, Any]:
    """Fork for each connection; returns, in the fork, the command to run."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen(64)
        os.write(1, b"ready\n")
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        while True:
            if sys.stdin in select.select([server, sys.stdin], [], [])[0]:
                Path(address).unlink()
                Path(address).parent.rmdir()
                os._exit(0)
            connection, _ = server.accept()
            if os.fork() == 0:
                server.close()
                return _guard(connection)
            connection.close()
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass


def _guard(connection: socket.socket) -> dict[str, Any]:
    """Fork once more; returns in the fork. The other one tells its starter its id and its end, and ends it with him."""
    _, numbers, _, _ = socket.recv_fds(connection, 1, 3)
    with connection.makefile("rb") as requests:
        request: dict[str, Any] = json.loads(requests.readline())
    pid = os.fork()
    if pid == 0:
        connection.close()
        for target, number in enumerate(numbers):
            os.dup2(number, target)
        os.closerange(3, max(numbers) + 1)
        return request
    for number in numbers:
        os.close(number)
    if request["group"] is not None:
        os.setpgid(pid, request["group"])
    connection.sendall(b"%d\n" % pid)
    end = os.pidfd_open(pid)
    if end not in select.select([connection, end], [], [])[0]:
        os.kill(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with contextlib.suppress(OSError):
        connection.sendall(b"%d\n" % code)
    os._exit(0)


def _run(words: list[str]) -> None:
    """What `python WORDS` runs: `-m MODULE`, `-c CODE` or a script, with its arguments."""
    match words:
        case ["-m", module, *arguments]:
            sys.argv, sys.path[0] = [module, *arguments], str(Path.cwd())
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        case ["-c", code, *arguments]:
            sys.argv, sys.path[0] = ["-c", *arguments], str(Path.cwd())
            exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
        case [script, *arguments]:
            sys.argv, sys.path[0] = [script, *arguments], str(Path(script).parent)
            runpy.run_path(script, run_name="__main__")


def main() -> None:
    address, imports = sys.argv[1:]
    _import_cli()
    if imports == "torch":
        _import_torch()
    # A fork has one thread: locks that others hold would stay locked. The allocator of pyarrow sees to its own.
    threads = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    assert len([name for name in threads if name != "jemalloc_bg_thd"]) == 1, threads
    # What is shared with the forks stays shared: their garbage collector leaves it alone.
    gc.freeze()
    request = _serve(address)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    if stages := os.environ.get(_STAGES):
        import rprm.subcommands

        rprm.subcommands.subprocess = Warm(stages).subprocess_module()
    _run(request["words"])


if __name__ == "__main__":
    main()
