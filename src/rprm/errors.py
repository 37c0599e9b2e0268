"""Every error the package raises on purpose.

A message says what went wrong, which record or file it concerns, and what to do about it. The command line prints the
message alone; only an error outside this tree shows a traceback, because only that is our fault.
"""

from __future__ import annotations

from rprm.showing import message


class RprmError(Exception):
    """Base of every error raised on purpose. What it says is fit to be shown, whatever names and texts are in it."""

    def __str__(self) -> str:
        return message(super().__str__())


class InputError(RprmError):
    """A record or file of input cannot be used."""


class PromptError(RprmError):
    """A prompt template is malformed, or cannot be derived from the rows given."""


class RunError(RprmError):
    """A run folder cannot be used as asked."""


class RunLocked(RunError):
    """Another process is writing to the run folder."""


class SettingsChanged(RunError):
    """The run folder was started with other settings."""


class CorruptRun(RunError):
    """A file of the run folder is damaged in a way that a crash cannot explain."""

    @classmethod
    def at(cls, place: str, error: Exception | str, fix: str = "restore the file") -> CorruptRun:
        """The error for a place (file and line), with the reason in one line: of pydantic's findings the first."""
        reason = str(error) or type(error).__name__
        if isinstance(error, KeyError):
            reason += " is missing"
        elif callable(findings := getattr(error, "errors", None)):
            first = findings(include_url=False, include_input=False)[0]
            reason = ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))
        return cls(
            f"{place} is damaged ({reason.splitlines()[0]:.200}); a kill cannot do that (the disk, or an edit, can): "
            f"{fix}, or begin a new run folder"
        )


class EngineError(RprmError):
    """An engine cannot be loaded or used."""


class EngineUnavailable(EngineError):
    """The engine stopped answering: the run ends here and can be resumed."""


class RequestRefused(EngineError):
    """This one request can never succeed (too long, rejected): it costs its record, never the run."""


class Unsupported(EngineError):
    """The engine does not have the capability that was asked for."""


class BenchmarkError(RprmError):
    """A benchmark cannot be measured from what was given."""


class MissingPredictions(BenchmarkError):
    """Items of the benchmark have no prediction."""
