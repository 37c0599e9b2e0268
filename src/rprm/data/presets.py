"""Settings of sampling and pairing, with their sources. The paper is R-PRM, arXiv 2503.21295; its code is NJUNLP/R-PRM.

Every value can be overridden.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rprm.errors import InputError

#: Options of `sample_analyses` by preset. `paper` is the paper's teacher: 4 analyses at temperature 0.4 of up to 8,192
#: tokens; top-p 0.95 is its script's (src/utils/inference.py). By default 3 analyses, as in the script
#: (src/scripts/examples/generate-PRM-CoT.sh), of up to 2,048 tokens (ours).
ANALYSES: Mapping[str, Mapping[str, Any]] = {
    "default": {"num_analyses": 3, "temperature": 0.4, "top_p": 0.95, "max_tokens": 2048},
    "paper": {"num_analyses": 4, "temperature": 0.4, "top_p": 0.95, "max_tokens": 8192},
}

#: Options of `write_pairs` by preset. `published` is the filter of the script (`--filter` of
#: src/utils/operate-PRM-CoT-data_paired.py): steps of which more than a third of the analyses agree,
#: two pairs of each. The script's pairs of a step share the chosen analysis; ours share none.
PAIRS: Mapping[str, Mapping[str, Any]] = {
    "default": {"per_step": 1, "min_accuracy": 0.0},
    "published": {"per_step": 2, "min_accuracy": math.nextafter(1 / 3, 1.0)},
}


def preset_options(
    presets: Mapping[str, Mapping[str, Any]], name: str | None, given: Mapping[str, Any]
) -> dict[str, Any]:
    """The options of a preset (None: `default`), with those given that are not None in their place.

    Raises:
        InputError: there is no preset of that name.
    """
    if name is not None and name not in presets:
        raise InputError(f"no preset {name!r}; there are {', '.join(presets)}")
    return {**presets[name or "default"], **{key: value for key, value in given.items() if value is not None}}
