"""Turn facenet-pytorch's weights, which you have downloaded yourself, into the file that faceswap/embedding.py reads.

    python tools/convert_facenet.py 20180402-114759-vggface2.pt FOLDER
    export FACESWAP_PRETRAINED=FOLDER

The download is a release file of github.com/timesler/facenet-pytorch. The layer that names VGGFace2's 8,631 people is
left out. VGGFace2 was published for research: look at its terms before you use the weights for anything else. Nothing
but tensors is read from the file (torch.load with weights_only).
"""

import argparse
import pickle
import sys
from pathlib import Path

import torch
from facenet_pytorch import InceptionResnetV1
from safetensors.torch import save

from faceswap import files
from faceswap.embedding import FACENET_FILE
from faceswap.errors import CheckpointError, FaceswapError

CLASSIFIER = "logits."


def convert(downloaded: Path, folder: Path, *, overwrite: bool = False) -> Path:
    """Write the weights of `downloaded` into `folder`; `CheckpointError` if they are not the network's."""
    net = InceptionResnetV1()
    try:
        weights = torch.load(downloaded, map_location="cpu", weights_only=True)
        net.load_state_dict({name: value for name, value in weights.items() if not name.startswith(CLASSIFIER)})
    except (RuntimeError, AttributeError, EOFError, pickle.UnpicklingError):  # their messages are pages
        raise CheckpointError(
            f"{downloaded}: expected 20180402-114759-vggface2.pt, whole, found something else; download it again"
        ) from None
    path = folder / FACENET_FILE
    with files.whole_file(path, overwrite=overwrite) as partial:
        partial.write_bytes(save(net.state_dict()))
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("downloaded", type=Path, metavar="FILE.pt")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it exists")
    asked = parser.parse_args()
    try:
        path = convert(asked.downloaded, asked.folder, overwrite=asked.overwrite)
    except FaceswapError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    except OSError as error:
        print(f"{error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    print(f"{path}: {path.stat().st_size / 1e6:.0f} MB; export FACESWAP_PRETRAINED={asked.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
