"""Bars on standard error."""

import fedpgp


def test_a_bar_for_each_thing_and_notices_between_them(small, cache, capfd):
    bars = fedpgp.ProgressBars()
    bars.notice("a sentence")
    fedpgp.run("promptfl", changes=["federation.rounds=2", "task.clients=2"], cache=cache, reporter=bars)
    printed = capfd.readouterr()
    assert printed.out == "a sentence\n"
    last = printed.err.replace("\r", "\n").splitlines()
    assert any(line.startswith("promptfl, seed 0: 100%") and "2/2, Local" in line for line in last)
    assert not bars._bars


def test_a_bar_whose_total_changes_ends_full(capfd):
    bars = fedpgp.ProgressBars()
    bars.progress("zero-shot, seed 0", 0, 25)
    bars.progress("zero-shot, seed 0", 1, 1)
    assert "100%" in (last := capfd.readouterr().err.splitlines()[-1]) and "1/1" in last
