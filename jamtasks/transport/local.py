"""Commands on this machine, without SSH."""

from __future__ import annotations

import os
from collections.abc import Sequence

from jamtasks.errors import HostError
from jamtasks.transport.base import Channel, Connection, ProcessChannel

SECRETS = ("JAM_PASSWORD", "QJAM_PASSWD")  # mapped functions need not see them


class LocalConnection(Connection):
    def exec(self, command: str | Sequence[str]) -> Channel:
        argv = ["/bin/sh", "-c", command] if isinstance(command, str) else list(command)
        env = {name: value for name, value in os.environ.items() if name not in SECRETS}
        return _LocalChannel(self.host, argv, env, grace=1.0)


class _LocalChannel(ProcessChannel):
    def cause(self) -> HostError | None:
        status = self.exit_status(0.5)
        self.settle()
        if status is not None and status < 0:
            return HostError(self.host, f"its process was ended by signal {-status}", retry=True)
        return None
