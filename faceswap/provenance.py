"""Mark what was made: a video says in its container that it was swapped or rendered, by what and how."""

import faceswap

# IPTC's terms for real footage with parts made by a trained model, and for pictures made by an algorithm alone.
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
RENDERED_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/algorithmicMedia"


def tags(model: str) -> dict[str, str]:
    """Container tags for a swapped video; `model` names the weight file that drew the faces."""
    return {
        "comment": f"Faces in this video were swapped with faceswap {faceswap.__version__}.",
        "digitalsourcetype": SOURCE_TYPE,
        "faceswap_model": model,
    }


def rendered_tags() -> dict[str, str]:
    """Container tags for a video of synthetic actors."""
    return {
        "comment": f"Rendered by faceswap {faceswap.__version__}: nobody in this video is real.",
        "digitalsourcetype": RENDERED_TYPE,
    }
