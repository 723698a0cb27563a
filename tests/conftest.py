"""The signals that tests send arrive, however the tests were started.

A shell without job control starts what it puts in the background with SIGINT and SIGQUIT ignored,
nohup with SIGHUP; all that is started from there inherits it, and a test of Ctrl-C would wait for
an end that never comes. Only main threads may set this, and the tests are run in one.
"""

import signal

signal.signal(signal.SIGINT, signal.default_int_handler)
for _number in (signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM):
    signal.signal(_number, signal.SIG_DFL)
