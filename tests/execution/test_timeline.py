from daskspace.execution.timeline import Timeline


def batches(timeline, number, workers=4, states=None, seconds=0.25):
    for batch in range(number):
        worker, start = f"w{batch % workers}", batch // workers * seconds
        timeline.add(worker, start, start + seconds, states or {"done": 10})


def test_a_timeline_stays_small_and_loses_no_process():
    timeline = Timeline(most=100)
    batches(timeline, 20_000)
    batches(timeline, 1, states={"failed": 3, "cached": 2})
    rows = timeline.rows()
    bars = [bar for row in rows.values() for bar in row]
    assert len(bars) <= 100
    assert sorted(rows) == ["w0", "w1", "w2", "w3"]
    assert sum(number for _, _, number, _ in bars) == 200_005
    assert sum(bad for _, _, _, bad in bars) == 3
    assert max(stop for _, stop, _, _ in bars) == 1250


def test_more_workers_than_bars_leave_the_latest():
    timeline = Timeline(most=50)
    for number in range(500):
        timeline.add(f"w{number}", number, number + 1, {"done": 1})
    rows = timeline.rows()
    assert len(rows) <= 50
    assert "w499" in rows


def test_short_batches_of_a_worker_share_a_bar_and_long_ones_do_not():
    timeline = Timeline()
    for start in range(3):
        timeline.add("a", start / 10, start / 10 + 0.1, {"done": 2})
        timeline.add("b", start * 5, start * 5 + 5, {"done": 1})
    assert len(timeline.rows()["a"]) == 1
    assert len(timeline.rows()["b"]) == 3
