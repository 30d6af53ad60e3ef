"""Wait until the cluster has GPU nodes, then become the command that follows.

    python wait_for_gpus.py 4 skllm-ray run classify …

A cluster that has scaled to zero needs minutes to start a GPU node, longer than a model waits for room. This asks Ray's
autoscaler for the GPUs, waits for them, and withdraws the request, so that idle nodes leave as usual. Where fewer have
come in time, the command starts with those; where none has, it does not start.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time


def main() -> None:
    """Read the command line, wait, and run what follows."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0], usage="%(prog)s [options] GPUS COMMAND …")
    parser.add_argument("gpus", type=int, help="how many GPUs to ask for")
    parser.add_argument("--timeout", type=float, default=1200.0, help="seconds to wait at most (default: %(default)g)")
    parser.add_argument("--address", default="auto", help="the cluster (default: the one this node is part of)")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="what to run then")
    given = parser.parse_args()
    if given.gpus < 1 or not given.command:
        parser.error("a number of GPUs, at least 1, and a command are needed")
    found = wait_for_gpus(given.gpus, given.timeout, given.address)
    print(f"{found:g} of {given.gpus} GPU(s) are here.", file=sys.stderr)  # noqa: T201
    if not found:
        sys.exit(75)  # a passing failure: try again later
    os.execvp(given.command[0], given.command)  # noqa: S606  the command is the user's own


def wait_for_gpus(n: int, timeout_s: float, address: str) -> float:
    """Return how many GPUs the cluster has, after waiting for `n` of them."""
    import ray
    from ray.autoscaler.sdk import request_resources

    ray.init(address, log_to_driver=False)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # a stopped job withdraws its request, too
    try:
        request_resources(bundles=[{"GPU": 1}] * n)
        until = time.monotonic() + timeout_s
        while (found := ray.cluster_resources().get("GPU", 0.0)) < n and time.monotonic() < until:
            time.sleep(2)
    finally:
        request_resources(bundles=[])
        ray.shutdown()
    return found


if __name__ == "__main__":
    main()
