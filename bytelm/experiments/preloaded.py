"""Imports what a run needs, in the fork server of warm_start.py. Nothing else imports this module.

It starts no thread and uses no device: a fork would not have the one and could not use the other.
"""

import gc
import signal
from importlib import import_module

from bytelm.system.environment import set_defaults
from bytelm.system.postponed import postpone
from bytelm.system.threads import set_waiting

MODULES = ("bytelm.program", "bytelm.cli")  # with them Lightning, torch and TensorBoard

for _signum in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(_signum, signal.SIG_IGN)  # for a whole group: the server reports how the programs have ended

set_defaults()
set_waiting(watch=False)
postpone()
gc.disable()
for _name in MODULES:
    import_module(_name)
gc.enable()
gc.freeze()  # pages that no search for garbage writes to stay shared
