"""Progress bars in a terminal, and lines without one."""

import io

import pytest
from rich.console import Console

import fedpgp


def test_a_line_for_each_finished_task_and_each_notice(small, cache, capfd):
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


def test_in_a_terminal_a_finished_bar_becomes_a_line_and_an_error_removes_the_bars():
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=100, soft_wrap=True, highlight=False)
    with pytest.raises(RuntimeError), fedpgp.ProgressBars(console) as bars:
        bars.progress("all runs", 0, 2)
        bars.progress("promptfl, seed 0", 1, 1, "Local 80.0")
        bars.progress("all runs", 1, 2, "1 s left")
        raise RuntimeError
    assert "promptfl, seed 0: done  Local 80.0" in text.getvalue()
    assert "1/2" in text.getvalue() and text.getvalue().endswith("\x1b[?25h"), "the cursor is back"
