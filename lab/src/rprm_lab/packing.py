"""What a lab's report is made of, in one file: rewards, candidates, manifests; no models, no texts of analyses."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rprm.runs import MANIFEST, RESULTS, SUMMARY, read_manifest, read_results
from rprm_lab.running import read_settings

#: The stage of a run of `rprm data analyses`, in its manifest.
_ANALYSES = "data analyses"


def pack(lab: str | Path, archive: str | Path) -> int:
    """Write a `.tar.xz` of a lab that was started; returns its size in bytes.

    Unpacked, it reports what the lab reports, and it can be resumed: what is done is not done again, as long as nothing
    new has to be trained from it.

    Raises:
        RunError: the folder holds no lab.
    """
    lab, archive = Path(lab), Path(archive)
    read_settings(lab)
    partial = archive.with_name(f"{archive.name}.partial")
    with tarfile.open(partial, "w:xz", preset=9) as tar:
        for file, content in _contents(lab):
            # No owner, no time: the same lab gives the same bytes.
            entry = tarfile.TarInfo(file.relative_to(lab).as_posix())
            entry.size, entry.mode = len(content), 0o644
            tar.addfile(entry, io.BytesIO(content))
    partial.replace(archive)
    return archive.stat().st_size


def _contents(lab: Path) -> Iterator[tuple[Path, bytes]]:
    # Without the card and what is trained on: a resumed run takes the world for unfinished, and writes it anew.
    for split in ("test", "ood"):
        for file in sorted((lab / "world" / split).glob("*.jsonl")):
            yield file, file.read_bytes()
    for manifest in sorted(lab.rglob(MANIFEST)):
        # The rows are changed, and have no checksums.
        content = read_manifest(manifest.parent)
        content = {name: value for name, value in content.items() if name not in ("crc", "files")}
        yield manifest, json.dumps(content, indent=2).encode()
        if (summary := manifest.with_name(SUMMARY)).is_file():
            yield summary, summary.read_bytes()
        results = manifest.with_name(RESULTS)
        # Analyses of labelled steps are trained on; nothing of them is reported.
        if results.is_file() and content["stage"] != _ANALYSES:
            rows = [json.dumps(_shortened(row), ensure_ascii=False) for row in read_results(manifest.parent, dict)]
            yield results, "".join(f"{row}\n" for row in rows).encode()


def _shortened(value: Any) -> Any:
    """The same without the texts of analyses. Numbers stay: a reward can stand a millionth below the threshold."""
    if isinstance(value, list):
        return [_shortened(item) for item in value]
    if isinstance(value, dict):
        is_analysis = "p_yes" in value and "text" in value
        return {key: "" if is_analysis and key == "text" else _shortened(item) for key, item in value.items()}
    return value
