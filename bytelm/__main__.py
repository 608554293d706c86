"""`python -m bytelm fit --config …`"""

import os
import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # a Ctrl-C while torch is imported needs no traceback
# Of a rank that is gone torch writes a C++ stack, and RankWatch one line. To be set before torch is imported.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

from bytelm.cli import main

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main()
