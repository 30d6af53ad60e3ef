"""A thousand workers, and a plan of a million parts: what the shared objects of a job take.

python -m benchmarks.thousand limiter                 # the rate limiter's rules alone, in simulated time
python -m benchmarks.thousand actors --holders 1000   # messages against the real limiter and ledger, in actors
python -m benchmarks.thousand plan --parts 1000000    # planning, finishing and resuming; needs 2 GB and some minutes
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from skllm_ray.config import RateLimit


def limiter(holders: tuple[int, ...] = (10, 100, 300, 1000), reports: int = 2000) -> dict[str, Any]:
    """Return what a report costs, by how many holders there are, and what of a core all of them take together."""
    from skllm_ray.llm.rate_limit.limiter import Quotas
    from skllm_ray.llm.rate_limit.messages import HEARTBEAT_S, Released, Report

    found = {}
    for n in holders:
        now, leases = [0.0], dict[int, tuple[int, int]]()
        quotas = Quotas(clock=lambda now=now: now[0])
        limit = RateLimit(requests_per_minute=60_000)
        began = time.process_time()
        for i in range(reports):
            now[0] += HEARTBEAT_S / n
            one = i % n
            lease, permits = leases.pop(one, (0, 0))
            told = (Released(lease, permits, 100 * permits, 100 * permits, 0.1, permits),) if permits else ()
            report = Report("b", f"n/{one}", i // n + 1, limit, 20, 2, (100,) * 8, released=told)
            grant = quotas.exchange(report)
            if grant.permits:
                leases[one] = grant.lease, grant.permits
        each = (time.process_time() - began) / reports
        found[f"{n} holders"] = {"µs each": round(each * 1e6), "of a core": round(each * n / HEARTBEAT_S, 3)}
    return found


def actors(holders: int, seconds: float) -> dict[str, Any]:
    """Return how the real limiter and a job's ledger serve many holders, which a few processes stand for."""
    import ray

    import skllm_ray
    from skllm_ray.execution.rate_limiter import _find

    skllm_ray.init()
    limiter_actor = _find()
    n_processes = 4
    each = ray.remote(_report_for).options(num_cpus=0)
    answers = [each.remote(limiter_actor, i, holders // n_processes, seconds) for i in range(n_processes)]
    latencies, permits, reports, spans = [], 0, 0, []
    for some, n_permits, n_reports, span in ray.get(answers):
        latencies += some
        permits, reports = permits + n_permits, reports + n_reports
        spans.append(span)
    took = max(end for _, end in spans) - min(start for start, _ in spans)
    skllm_ray.shutdown()
    quantiles = statistics.quantiles(latencies, n=100)
    return {
        "holders": holders,
        "reports/s": round(reports / took),
        "latency, ms: median, 99%": [round(1e3 * quantiles[49], 1), round(1e3 * quantiles[98], 1)],
        "permits/s of 1,000": round(permits / took),
    }


def _report_for(actor: Any, process: int, n: int, seconds: float) -> tuple[list[float], int, int, tuple[float, float]]:
    import ray

    from skllm_ray.llm.rate_limit.messages import Released, Report

    node = ray.get_runtime_context().get_node_id()
    limit = RateLimit(requests_per_minute=60_000, max_concurrency=2000)
    began = time.monotonic()
    until = began + seconds
    latencies, permits = list[float](), [0]

    async def hold(one: int) -> int:
        number, released, epoch = 0, (), ""
        await asyncio.sleep(0.5 * one / n)
        while time.monotonic() < until:
            number += 1
            asked = time.monotonic()
            name = f"{node}/{os.getpid()}-{process}-{one}"  # the limiter forgets holders whose processes are gone
            grant = await actor.exchange.remote(
                Report(
                    "bench",
                    name,
                    number,
                    limit,
                    20,
                    0,
                    (100,) * 8,
                    released=released,
                    epoch=epoch,
                    done=sum(one.permits for one in released),
                    latency_s=0.5 if released else None,
                    served=bool(released),
                )
            )
            epoch = grant.epoch
            latencies.append(time.monotonic() - asked)
            permits[0] += grant.permits
            p = grant.permits
            released = (Released(grant.lease, p, 100 * p, 100 * p, 0.0, p),) if p else ()
            await asyncio.sleep(max(0.1, grant.wait_s))
        return number

    async def all_of_them() -> list[int]:
        return await asyncio.gather(*(hold(one) for one in range(n)))

    n_reports = sum(asyncio.run(all_of_them()))
    return latencies, permits[0], n_reports, (began, time.monotonic())


def plan(parts: int, rows_each: int = 1000) -> dict[str, Any]:
    """Return the seconds and the memory of planning, finishing and resuming a job of very many parts."""
    from skllm_ray.batch.input.slices import InputFile, Units
    from skllm_ray.batch.job.planner import remaining_calls
    from skllm_ray.batch.output.manifest import Manifest, load_manifest
    from skllm_ray.batch.output.output_state import OutputState
    from skllm_ray.batch.output.part import UnitSummary, add_up
    from skllm_ray.batch.storage import StorageOptions, open_folder

    per = min(parts, 1000)
    groups = (rows_each,) * per
    files = tuple(
        InputFile(f"{i:05d}.parquet", 10**8, 1, groups, (), rows_each * per, 10**8) for i in range(parts // per)
    )
    told = dict.fromkeys(("text_template", "labels"))
    texts = dict.fromkeys(("output_prefix", "question", "prompt", "input_schema", "schema"), "")
    folder = tempfile.mkdtemp()
    found: dict[str, Any] = {}

    def step(name: str, act: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        result = act()
        memory = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        found[name] = {"s": round(time.perf_counter() - began, 1), "MB": round(memory / 1e6)}
        return result

    try:
        output = open_folder(folder, StorageOptions.of(None), {})
        manifest = Manifest(
            input=("in",), text_column="text", keep_columns=(), keep_replies="none", task="T", model="m",
            identity='"m"', params="{}", prediction_columns=("prediction",), unit_rows=rows_each, files=files,
            **told, **texts,
        )  # fmt: skip
        system = output.below("_skllm_ray")
        step("manifest written", lambda: manifest.save(system))
        manifest = step("manifest read", lambda: load_manifest(system))
        units = step("units", lambda: Units(manifest.files, manifest.unit_rows, manifest.cuts))
        state = step("state of an empty output", lambda: OutputState(output, units))
        step("what is to be done", lambda: remaining_calls(manifest.rows_total, state))
        for unit in units:
            state.add(UnitSummary(unit=unit.key, file=unit.path, rows=rows_each, asked=rows_each, model="m", size=1))
        step("summaries written, all at once", lambda: state.save(force=True))
        step("added up", lambda: (add_up(state.summaries.values()), state.bill))
        del state
        for unit in units:
            Path(folder, unit.part_name).write_bytes(b"x")
        state = step("state of a whole output", lambda: OutputState(output, units))
        assert len(state.summaries) == parts
        step("what is left of it", lambda: remaining_calls(manifest.rows_total, state))
    finally:
        shutil.rmtree(folder)
    found["peak, MB"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)
    return found


def main() -> None:
    """Run one of them and print what was seen."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("what", choices=["limiter", "actors", "plan"])
    parser.add_argument("--holders", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--parts", type=int, default=1_000_000)
    given = parser.parse_args()
    if given.what == "limiter":
        found = limiter()
    elif given.what == "actors":
        found = actors(given.holders, given.seconds)
    else:
        found = plan(given.parts)
    print(json.dumps(found, indent=1, ensure_ascii=False))  # noqa: T201


if __name__ == "__main__":
    main()
