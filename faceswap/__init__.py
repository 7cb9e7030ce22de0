"""faceswap: train a face-swap autoencoder on two people and render the swap.

video -> faces -> tracks -> aligned faces -> faceset -> batches -> model -> swapped face -> frame -> video

extract.py   footage to faceset          video, detectors/, landmarks, tracks, who, align, faceset
curate.py    faceset to a better one     faceset, looks, sheet, pack; foreign.py: from other tools
train.py     facesets to a run           batches, augment, models/, losses, strategies/, checkpoint, monitor
swap.py      footage and run to footage  checkpoint, color, blend, provenance, video
pair.py      all three, for two videos
evaluate.py  how good is it              batches, detectors/, swap, metrics, embedding, page
actors.py    people who are not real     heads, skins, render: footage whose truth is known
benchmark.py a swap against its truth    actors, pair, evaluate
cli.py       the command line over these
"""

__version__ = "0.1.0"
