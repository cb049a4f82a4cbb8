"""Work on many files in bounded memory: the next ones are read in threads while the network sees the present one."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
BYTES_AHEAD = 2**28  # of files read ahead; a larger file is read alone


def map_in_order(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    pool: ThreadPoolExecutor | None = None,
    ahead: int = 4,
    weigh: Callable[[Item], int] = lambda _: 0,
    limit: int = BYTES_AHEAD,
) -> Iterator[tuple[Item, Result | ValueError | OSError]]:
    """Each item with what the function makes of it, in the items' order; a ValueError or OSError is such a result.

    At most `ahead` items, and of these at most `limit` by weight (but always one), are taken and not yet handed on.
    Without a pool the function is called in turn.
    """
    waiting: deque[tuple[Item, int, Future[Result | ValueError | OSError]]] = deque()
    weight = 0

    def attempt(item: Item) -> Result | ValueError | OSError:
        try:
            return function(item)
        except (ValueError, OSError) as error:
            return error

    if pool is None:
        yield from ((item, attempt(item)) for item in items)
        return
    try:
        for item in items:
            own = weigh(item)
            while waiting and (len(waiting) >= ahead or weight + own > limit):
                oldest, released, future = waiting.popleft()
                yield oldest, future.result()
                weight -= released
            waiting.append((item, own, pool.submit(attempt, item)))
            weight += own
        while waiting:
            oldest, _, future = waiting.popleft()
            yield oldest, future.result()
    finally:
        for _, _, future in waiting:
            future.cancel()


@contextmanager
def thread_pool(num_files: int) -> Iterator[ThreadPoolExecutor | None]:
    """Threads to read `num_files` files with: none for a single one. What has not begun is dropped at an error."""
    if num_files < 2:
        yield None
        return
    pool = ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
