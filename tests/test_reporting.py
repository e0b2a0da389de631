"""Bars on standard error."""

import fedpgp


def test_a_bar_for_each_thing_and_notices_between_them(small, cache, capfd):
    bars = fedpgp.ProgressBars()
    bars.notice("a sentence")
    fedpgp.run("promptfl", changes=["federation.rounds=2", "task.clients=2"], cache=cache, reporter=bars)
    printed = capfd.readouterr().err.splitlines()
    assert printed[0] == "a sentence"
    assert any(line.startswith("promptfl, seed 0") and "2/2" in line and "Local" in line for line in printed)


def test_a_bar_whose_total_changes_ends_full(capfd):
    bars = fedpgp.ProgressBars()
    bars.progress("zero-shot, seed 0", 0, 25)
    bars.progress("zero-shot, seed 0", 1, 1)
    assert "1/1" in capfd.readouterr().err.splitlines()[-1]
