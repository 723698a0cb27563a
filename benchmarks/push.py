"""A cold push: 256 MB of float64 to one SSH host that has none of it, then the same call again.

The limits in the same run: a bare Paramiko channel with AES-GCM, and `ssh host cat >/dev/null`.
"""

from __future__ import annotations

import statistics
import subprocess
import time

import numpy

from jamtasks import DataSet, Master

from . import bytesum, common

MEGABYTES = 256
REPEAT = 5


def bare_paramiko(host: common.Host, data: memoryview) -> float:
    """Seconds to write `data` into `cat >/dev/null` over one Paramiko channel, AES-GCM first."""
    import paramiko

    client = paramiko.SSHClient()
    client.load_host_keys(host.known_hosts)
    client.set_missing_host_key_policy(paramiko.RejectPolicy())
    prefer = paramiko.Transport._preferred_ciphers  # type: ignore[attr-defined]
    others = [name for name in prefer if "gcm" not in name]
    client.connect(
        host.address, port=host.port, username=host.user, key_filename=host.key,
        disabled_algorithms={"ciphers": others}, allow_agent=False, look_for_keys=False,
    )  # fmt: skip
    try:
        transport = client.get_transport()
        assert transport is not None
        channel = transport.open_session(window_size=1 << 24, max_packet_size=1 << 15)
        channel.exec_command("cat >/dev/null; echo done")
        began = time.perf_counter()
        for start in range(0, len(data), 1 << 18):
            channel.sendall(data[start : start + (1 << 18)])
        channel.shutdown_write()
        while channel.recv(100):
            pass
        return time.perf_counter() - began
    finally:
        client.close()


def ssh_cat(host: common.Host, data: memoryview) -> float:
    process = subprocess.Popen(
        host.ssh("cat >/dev/null; echo done"), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        began = time.perf_counter()
        process.stdin.write(data)
        process.stdin.close()
        process.stdout.read()
        return time.perf_counter() - began
    finally:
        common.end(process)


def jam(host: common.Host, transport: str, matrix: numpy.ndarray) -> tuple[float, float]:
    """Seconds of the first call and of the second. Connected before the clock starts."""
    with Master([host.spec(transport, 4)], "push") as master:
        master.run(bytesum, None, numpy.zeros((4, 4)))
        data = DataSet(matrix)
        began = time.perf_counter()
        master.run(bytesum, None, data, slice_size=len(matrix) // 8)
        first = time.perf_counter() - began
        if master.last_run.bytes_sent < matrix.nbytes:
            raise SystemExit("the data was there already")
        began = time.perf_counter()
        master.run(bytesum, None, data, slice_size=len(matrix) // 8)
        second = time.perf_counter() - began
        if master.last_run.bytes_sent:
            raise SystemExit("the second call sent data")
        return first, second


def main() -> None:
    rows: dict[str, list[float]] = {}
    again: dict[str, list[float]] = {}
    random = numpy.random.default_rng()
    with common.host() as host:
        for _ in range(REPEAT):
            matrix = random.random((MEGABYTES * 128, 1024))
            view = memoryview(matrix.reshape(-1).view(numpy.uint8))
            rows.setdefault("ssh host cat (limit)", []).append(ssh_cat(host, view))
            rows.setdefault("bare Paramiko, AES-GCM (limit)", []).append(bare_paramiko(host, view))
            for transport in ("openssh", "fabric"):
                matrix = random.random((MEGABYTES * 128, 1024))
                first, second = jam(host, transport, matrix)
                rows.setdefault(f"jam, {transport}", []).append(first)
                again.setdefault(f"jam, {transport}", []).append(second)
    size = MEGABYTES * 1.048576
    base = statistics.median(rows["bare Paramiko, AES-GCM (limit)"])
    shown = []
    for name, times in rows.items():
        seconds = statistics.median(times)
        second = f"{statistics.median(again[name]) * 1e3:.1f}" if name in again else ""
        shown.append([name, f"{size / seconds:.0f}", f"{base / seconds:.2f}", second])
    common.table(
        f"{MEGABYTES} MiB of float64 to one host",
        ["", "MB/s cold", "ratio to bare Paramiko", "ms, second call"],
        shown,
    )


if __name__ == "__main__":
    main()
