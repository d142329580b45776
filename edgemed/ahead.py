"""Work done in threads before it is asked for, in order: a network need not wait for files, and memory has a bound.

    for image in ahead(image_from_file, files, threads=2, depth=16): ...
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def ahead(function: Callable[[T], R], items: Iterable[T], threads: int, depth: int) -> Generator[R]:
    """`function` of each item, in order, with up to `depth` calls done or running beyond the one that is asked for."""
    with ThreadPoolExecutor(threads, thread_name_prefix="edgemed-ahead") as pool:
        rest = iter(items)
        running: deque[Future[R]] = deque()
        try:
            for item in rest:
                running.append(pool.submit(function, item))
                if len(running) > depth:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            for future in running:
                future.cancel()
