"""`python -m faceswap`."""

from faceswap.cli import main

main()
