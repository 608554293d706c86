"""The process that reads, encodes and packs documents beside the training process.

It receives a pickled Job on its standard input, and writes pickled messages to its standard output until its reader is
gone. Both ends are this program; therefore pickles are safe. A message is one of

    ("block", place, rows)   rows, and the place before them
    ("end",)                 there are no more
    ("data", text)           the documents or the tokenizer cannot be read
    ("failed", text)         another error, with its traceback
"""

import math
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bytelm.data.packing import BestFit, DocumentTokens, Tokens
from bytelm.data.shared_tokens import SharedTokens, Sharing
from bytelm.data.tokenizer import Tokenizer, load_tokenizer
from bytelm.errors import DataError

Block = tuple[dict[str, Any], Tokens]
"""The place before some rows (BestFit.state_dict), and the rows."""


class Job(NamedTuple):
    """A description of packed rows.

    Attributes:
        files: The files with documents.
        column: See documents.groups.
        tokenizer: Name of the tokenizer, for load_tokenizer.
        row_tokens: Tokens of a row.
        buffer_size: See BestFit.
        block_rows: Rows of a block.
        passes: How often the files are read; None: forever.
        most: Maximum number of rows.
        sharing: The ranks that encode the documents together; None: each one encodes them all.
    """

    files: tuple[str, ...]
    column: str
    tokenizer: str
    row_tokens: int
    buffer_size: int
    block_rows: int
    passes: int | None = None
    most: int | None = None
    sharing: Sharing | None = None


def blocks(job: Job, state: dict[str, Any] | None, tokenizer: Tokenizer | None = None) -> Iterator[Block]:
    """Yields the blocks of a job, from a place on.

    Args:
        job: The job.
        state: The place; None: the beginning.
        tokenizer: The job's tokenizer, if it is loaded already.

    Raises:
        DataError: The documents or the tokenizer cannot be read.
    """
    tokenizer = load_tokenizer(job.tokenizer) if tokenizer is None else tokenizer
    shared = None if job.sharing is None else SharedTokens(job.sharing)
    documents = DocumentTokens([Path(file) for file in job.files], job.column, tokenizer, job.passes, shared)
    packer = BestFit(documents, job.row_tokens, job.buffer_size, state)
    left = math.inf if job.most is None else job.most
    while left:
        place = packer.state_dict()
        if not len(rows := packer.take(int(min(job.block_rows, left)))):
            return
        left -= len(rows)
        yield place, rows


def main() -> None:
    """Runs the process."""
    # A Ctrl-C and a batch system reach all processes of a run. The training process may still need rows to end its
    # step, and ends this process then.
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    output = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints is not a block

    def send(*message: Any) -> None:
        pickle.dump(message, output, protocol=5)
        output.flush()

    job, state = pickle.load(sys.stdin.buffer)
    try:
        for place, rows in blocks(job, state):
            send("block", place, rows)
        send("end")
    except BrokenPipeError:  # the reader is gone
        os._exit(0)
    except DataError as error:
        send("data", str(error))
    except Exception:
        send("failed", traceback.format_exc())


if __name__ == "__main__":
    main()
