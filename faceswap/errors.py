"""What can go wrong, as the user will read it.

A message says what was expected, what was found and what to do, on one line. The command line prints it without a
traceback and exits with `exit_status`.
"""


class FaceswapError(Exception):
    """The work was understood and failed: exit status 1."""

    exit_status = 1


class UsageError(FaceswapError):
    """The request itself cannot be carried out as given: exit status 2."""

    exit_status = 2


class RecipeError(UsageError):
    """A recipe or a `--set` holds an unknown key or a value out of range."""


class OutputExistsError(UsageError):
    """The output is there already and `--overwrite` was not given."""


class MediaError(FaceswapError):
    """A video or an image cannot be read or written."""


class FacesetError(FaceswapError):
    """A faceset is missing, empty, too small or damaged."""


class CheckpointError(FaceswapError):
    """A run or a weight file is missing, damaged or of another architecture."""


class TrainingError(FaceswapError):
    """Training cannot go on."""
