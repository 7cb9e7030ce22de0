"""Write the size and the sha256 of a file in pretrained/ into pretrained/manifest.toml.

    python tools/ship.py landmarks

To be run after a weight file that ships was replaced. The file must have its entry in the manifest already.
"""

import re
import sys
from pathlib import Path

from faceswap import files
from faceswap.pretrained import MANIFEST

FOLDER = Path(__file__).parents[1] / "pretrained"


def refresh(name: str, folder: Path = FOLDER) -> str:
    """Change the lines `bytes = ` and `sha256 = ` in the table `name`; gives them."""
    manifest = folder / MANIFEST
    before, head, rest = manifest.read_text(encoding="utf-8").partition(f"[{name}]\n")
    table, bracket, after = rest.partition("\n[")
    file = re.search(r'^file = "(.+)"$', table, re.MULTILINE)
    if file is None:
        raise SystemExit(f"{manifest}: expected a table [{name}] with a file in it, found none; add one")
    path = folder / file[1]
    lines = f'bytes = {path.stat().st_size}\nsha256 = "{files.sha256(path)}"'
    kept = [line for line in table.rstrip("\n").splitlines() if not line.startswith(("bytes =", "sha256 ="))]
    end = "\n" * (len(table) - len(table.rstrip("\n"))) if bracket else "\n"
    text = "\n".join([*kept, lines]) + end
    with files.whole_file(manifest, overwrite=True) as partial:
        partial.write_text(before + head + text + bracket + after, encoding="utf-8")
    return lines


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    print(refresh(sys.argv[1]))
