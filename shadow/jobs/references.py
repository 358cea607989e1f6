"""Settings that stand for others, as ${seed} does."""

from collections.abc import Iterator
from contextlib import contextmanager

from omegaconf.errors import InterpolationResolutionError

from shadow.errors import UserError, first_line


@contextmanager
def resolved() -> Iterator[None]:
    """A setting that is read in the block and stands for one that there is not is refused in a sentence."""
    try:
        yield
    except InterpolationResolutionError as error:
        reason = first_line(error)
        raise UserError(
            f"{error.full_key or 'a setting'} stands for another that cannot be had ({reason}): give a "
            "value, or ${} around the name of a setting that there is"
        ) from error
