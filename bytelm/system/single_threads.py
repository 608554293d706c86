"""Threads whose operators use one thread each."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import torch


def single_threads(n_threads: int) -> ThreadPoolExecutor:
    """A pool of threads that torch's operators do not divide their work over; the same for every call.

    Args:
        n_threads: Number of threads.
    """
    return _of_process(n_threads, os.getpid())  # a forked process has no threads of its parent's pool


@lru_cache
def _of_process(n_threads: int, process: int) -> ThreadPoolExecutor:
    started = threading.Barrier(n_threads)

    def begin(_: int) -> None:
        torch.get_num_threads()  # the first call in a thread sets its number, and would later undo the next line
        torch.set_num_threads(1)  # of this thread, and of those that start later
        started.wait()  # else one thread could begin for several

    usual = torch.get_num_threads()
    pool = ThreadPoolExecutor(n_threads, thread_name_prefix="single")
    list(pool.map(begin, range(n_threads)))
    torch.set_num_threads(usual)
    return pool
