"""Work that overlaps: a thread takes what comes next while what came before is still in use."""

import threading
from collections.abc import Generator, Iterable
from queue import Queue
from typing import Generic, TypeVar

Item = TypeVar("Item")


class _End(Generic[Item]):
    """Nothing comes any more, or an error."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


def ahead(items: Iterable[Item], count: int) -> Generator[Item, None, None]:
    """`items` in their order, taken by a thread of its own that is at most `count` of them ahead.

    An error in `items` comes where the item would have come. Close it, or use it up: then the thread is over, `items`
    is closed if it is a generator, and no more of it is taken. Whoever takes must not hold Python's lock for long:
    NumPy, OpenCV, PyAV and torch let go of it.
    """
    ready: Queue[Item | _End[Item]] = Queue(count)
    unwanted = threading.Event()

    def take() -> None:
        end = _End[Item]()
        source = iter(items)
        try:
            while not unwanted.is_set():
                ready.put(next(source))
        except StopIteration:
            pass
        except BaseException as error:  # whatever it is, it belongs to whoever wants the items
            end = _End(error)
        finally:
            try:
                if close := getattr(source, "close", None):
                    close()
            finally:
                ready.put(end)

    thread = threading.Thread(target=take, name="ahead", daemon=True)
    thread.start()
    found: Item | _End[Item] | None = None
    try:
        while not isinstance(found := ready.get(), _End):
            yield found
        if found.error is not None:
            raise found.error
    finally:
        unwanted.set()
        while not isinstance(found, _End):  # there may be no room for it
            found = ready.get()
        thread.join()
