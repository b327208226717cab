"""Watching an operation from its result directory."""

import json
import signal
import subprocess
import time

from daskspace.execution.job_record import JobRecord

from .conftest import heed_interrupts, plain_environment


def begin(place, *arguments):
    return subprocess.Popen(
        [*place.command, *arguments],
        cwd=place.path,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=heed_interrupts,
        env=plain_environment(),
    )


def wait_until(condition, seconds=60):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"waited for {seconds} s"
        time.sleep(0.05)


def test_who_watches_may_leave_and_is_told_when_nobody_works_there(place):
    working = begin(place, "run", place.spec("wait"), "-o", "out")
    try:
        snapshot = place.path / "out" / ".attempts" / "snapshot.json"
        wait_until(lambda: snapshot.exists() and '"done": 1' in snapshot.read_text())
        told = json.loads(place.run("watch", "out", "--json").stdout)
        assert told["state"] == "running"
        assert told["counts"] == {"done": 1, "waiting": 2}
        with begin(place, "watch", "out") as watching:
            assert "1 of 3 ended" in watching.stdout.readline()
            watching.send_signal(signal.SIGINT)
            rest, _ = watching.communicate(timeout=60)
        assert watching.returncode == 130
        assert "left; it goes on" in rest
        assert working.poll() is None
        with begin(place, "watch", "out") as watching:
            assert "1 of 3 ended" in watching.stdout.readline()
            working.kill()
            rest, _ = watching.communicate(timeout=60)
    finally:
        working.kill()
        working.communicate()
    assert watching.returncode == 4
    assert "nobody works on it any more" in rest
    assert "ended so far: 1 done" in rest
    assert "resume out" in rest
    record = JobRecord(place.path / "out" / "jobs.jsonl", "slurm", "daskspace-abcde")
    record.submitted("4711")
    record.close(released=False)
    again = place.run("watch", "out")
    assert again.returncode == 4
    assert "(4711)" in again.stdout
    assert "cancel out" in again.stdout


def test_watching_ends_with_the_operation(place):
    with begin(place, "run", place.spec("nap", "range(12)"), "-o", "out", "-q") as working:
        wait_until((place.path / "out" / "journal.jsonl").exists)
        watched = place.run("watch", "out")
        working.communicate(timeout=60)
    assert watched.returncode == 0
    assert watched.stdout.startswith("12 processes: 12 done, in ")
    assert place.run("watch", "out").stdout == watched.stdout


def test_of_a_finished_operation_the_summary_is_printed(finished):
    ended = finished.run("watch", "out")
    assert ended.returncode == 3
    assert ended.stdout.startswith("3 processes: 2 done, 1 failed, in ")
    assert "failures out" in ended.stdout
    told = json.loads(finished.run("watch", "out", "--json").stdout)
    assert told["state"] == "ended"
    assert told["counts"] == {"done": 2, "failed": 1}


def test_a_directory_without_an_operation_cannot_be_watched(place):
    ended = place.run("watch", "nowhere")
    assert ended.returncode == 1
    assert "nowhere is no directory" in ended.stderr
