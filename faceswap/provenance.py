"""Mark what was made: a swapped video says in its container that it was swapped, by what and how."""

import faceswap

# IPTC's term for real footage with parts made by a trained model.
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"


def tags(model: str) -> dict[str, str]:
    """Container tags for a swapped video; `model` names the weight file that drew the faces."""
    return {
        "comment": f"Faces in this video were swapped with faceswap {faceswap.__version__}.",
        "digitalsourcetype": SOURCE_TYPE,
        "faceswap_model": model,
    }
