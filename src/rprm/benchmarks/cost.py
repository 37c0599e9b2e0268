"""What a run of judging cost: tokens, seconds, and floating-point operations where the model's size is known."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

from rprm.errors import EngineError
from rprm.folders import fingerprint, own_file, read_object
from rprm.models import find_model
from rprm.runs import read_manifest

#: A forward pass takes about two operations (a multiplication, an addition) for each weight and token: 2N of Kaplan et
#: al. 2020 (arXiv 2001.08361, section 2.1), without the attention over the context.
OPERATIONS_PER_WEIGHT = 2


@dataclass(frozen=True, slots=True)
class Cost:
    """What a run cost beside the tokens that it generated; None: not known."""

    seconds: float | None = None  #: of the sessions that recorded theirs, each without loading the model
    sessions: int = 0
    untimed_sessions: int = 0  #: those that were killed before they could: `seconds` is then the least that it took
    parameters: float | None = None  #: weights of the judge's model

    def time_as_dict(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "parameters"}

    @property
    def time(self) -> str:
        """In words."""
        least = f" at least, {self.untimed_sessions:,} of {self.sessions:,} sessions were killed untimed"
        known = f"{self.seconds or 0.0:,.1f} seconds{least * bool(self.untimed_sessions)}"
        return "seconds not known" if self.seconds is None else known


def cost_of(folder: str | Path) -> Cost:
    """What the sessions of a run folder took, and the size of the model that they asked."""
    manifest = read_manifest(folder)
    recorded = [session.get("seconds") for session in manifest["sessions"]]
    timed = [seconds for seconds in recorded if type(seconds) in (int, float) and seconds >= 0]
    engine = manifest["settings"].get("engine")
    parameters = num_parameters(engine) if isinstance(engine, dict) else None
    return Cost(sum(timed) if timed else None, len(recorded), len(recorded) - len(timed), parameters)


def num_parameters(engine: Mapping[str, Any]) -> float | None:
    """The number of weights of a manifest's `engine`: of a folder that is still the same, by the headers of its
    safetensors files; of a known model (`rprm models`). None where neither tells it, or it is quantised."""
    if not isinstance(name := engine.get("model"), str):
        return None
    if not (folder := Path(name)).is_dir():
        known = find_model(name)
        return None if known is None else known.parameters * 1e9
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        return None
    number = 0
    with suppress(OSError, EngineError, SafetensorError):
        config = own_file(folder, "config.json")
        if fingerprint(folder) != engine.get("revision") or not config or "quantization_config" in read_object(config):
            return None
        for file in filter(None, (own_file(folder, path.name) for path in folder.glob("model*.safetensors"))):
            with safe_open(file, "np") as stored:
                number += sum(prod(stored.get_slice(name).get_shape()) for name in stored.keys())  # noqa: SIM118
        return number or None
    return None
