"""Pack what a lab's report is made of: rewards, candidates and manifests, without models, training data and analyses.

    python recipes/pack_lab.py runs/lab lab.tar.xz
    tar -xJf lab.tar.xz -C elsewhere && rprm lab report elsewhere

Of every analysis its P(Yes), its verdict and its length stay; its text goes. A lab that is unpacked can be gone on
with: what was run is not run again, as long as nothing new has to be trained from it.
"""

from __future__ import annotations

import argparse
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rprm.artifacts import MANIFEST, RESULTS, SUMMARY, read_json_lines
from rprm.lab.findings import find
from rprm.lab.running import read_settings

#: Runs whose results the report does not read: what models were trained on.
TRAINED_ON = {"analyses", "cold-start", "sampled", "pairs"}


def stripped(value: Any) -> Any:
    """The same without the texts of analyses, probabilities to six digits."""
    if isinstance(value, list):
        return [stripped(item) for item in value]
    if isinstance(value, dict):
        is_analysis = "p_yes" in value and "text" in value
        return {key: "" if is_analysis and key == "text" else stripped(item) for key, item in value.items()}
    return round(value, 6) if isinstance(value, float) else value


def contents(lab: Path) -> Iterator[tuple[Path, bytes]]:
    """Files of the pack, by their place in the lab's folder."""
    for file in sorted((lab / "world").glob("*.*")):
        yield file, file.read_bytes()
    for split in ("test", "ood"):
        for file in sorted((lab / "world" / split).glob("*.jsonl")):
            yield file, file.read_bytes()
    for manifest in sorted(lab.rglob(MANIFEST)):
        folder = manifest.parent
        yield manifest, manifest.read_bytes()
        if (folder / SUMMARY).is_file():
            yield folder / SUMMARY, (folder / SUMMARY).read_bytes()
        if (folder / RESULTS).is_file() and not TRAINED_ON & set(folder.relative_to(lab).parts):
            rows = [json.dumps(stripped(row), ensure_ascii=False) for row in read_json_lines(folder / RESULTS)]
            yield folder / RESULTS, "".join(f"{row}\n" for row in rows).encode()


def pack(lab: Path, archive: Path) -> None:
    with tarfile.open(archive, "w:xz", preset=9) as tar:
        for file, content in contents(lab):
            entry = tarfile.TarInfo(str(file.relative_to(lab)))
            entry.size, entry.mode = len(content), 0o644
            tar.addfile(entry, io.BytesIO(content))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lab", type=Path, help="folder of `rprm lab run`")
    parser.add_argument("archive", type=Path, help="the file to write, .tar.xz")
    arguments = parser.parse_args()
    found = find(arguments.lab, read_settings(arguments.lab))
    pack(arguments.lab, arguments.archive)
    size = arguments.archive.stat().st_size
    print(f"{arguments.archive}: {size:,} bytes, {', '.join(found.num_seeds) or 'no experiment whole yet'}")
