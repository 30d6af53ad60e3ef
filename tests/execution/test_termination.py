"""SIGTERM during `predict` ends it as Ctrl-C does: what was answered is kept, and no native stack is printed."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import threading
import time

import pytest

from skllm_ray.batch.job.interruption import Interruption
from skllm_ray.execution.termination import ends_on_sigterm
from skllm_ray.testing import ChatServer

SCRIPT = """
import skllm_ray
from skllm_ray.classification import ZeroShotGPTClassifier
from skllm_ray.config import SKLLMConfig

SKLLMConfig.set_gpt_url({url!r})
SKLLMConfig.set_reply_cache({cache!r})
SKLLMConfig.set_rate_limit("custom_url::m", max_concurrency=4)
skllm_ray.init({options})
clf = ZeroShotGPTClassifier(model="custom_url::m").fit(None, ["good", "bad"])
try:
    clf.predict(["text %d" % i for i in range({n_rows})])
finally:
    print("the user's own finally")
"""


def interrupted(tmp_path, number: int, options: str, n_rows: int) -> tuple[subprocess.CompletedProcess[str], int, int]:
    """Return how a program ends, how many requests it had sent, and how many answers it kept."""
    cache = tmp_path / "cache.sqlite"
    with ChatServer(lambda body: '{"label": "good"}', latency_s=0.3) as server:
        source = SCRIPT.format(url=server.url, cache=str(cache), options=options, n_rows=n_rows)
        pipe = subprocess.PIPE
        process = subprocess.Popen([sys.executable, "-c", source], stdout=pipe, stderr=pipe, text=True)
        while server.n_requests < 12:
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        process.send_signal(number)
        out, err = process.communicate(timeout=120)
        sent = server.n_requests
    done = subprocess.CompletedProcess([], process.returncode, out, err)
    return done, sent, sqlite3.connect(cache).execute("SELECT count(*) FROM answers").fetchone()[0]


@pytest.mark.deep
@pytest.mark.parametrize("options", ["local_mode=True"])
def test_what_was_answered_is_kept(tmp_path, options: str) -> None:
    done, sent, kept = interrupted(tmp_path, signal.SIGTERM, options, 2000)
    assert (done.returncode, done.stdout, done.stderr) == (143, "the user's own finally\n", "")
    assert kept >= 12 - 8
    assert sent - 8 <= kept  # four were in flight, and four may just have arrived on a busy machine


def test_other_handlers_and_other_threads_are_left_alone() -> None:
    def own(number, frame):
        raise AssertionError

    before = signal.signal(signal.SIGTERM, own)
    try:
        with ends_on_sigterm():
            assert signal.getsignal(signal.SIGTERM) is own
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with ends_on_sigterm():
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        thread = threading.Thread(target=ends_on_sigterm().__enter__)
        thread.start()
        thread.join()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(("number", "ends"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
def test_a_jobs_second_signal_keeps_its_code_whatever_ray_makes_of_it(number, ends) -> None:
    before = signal.signal(number, signal.SIG_DFL)
    try:
        with pytest.raises(ends) as ended, Interruption():
            signal.raise_signal(number)
            try:
                signal.raise_signal(number)
            except BaseException:  # noqa: BLE001 - as `ray.wait` does
                raise SystemExit(1) from None
    finally:
        signal.signal(number, before)
    assert number == signal.SIGINT or ended.value.code == 143
