"""Bars for those who call from Python: in a terminal, and in a notebook."""

from typing import Any

from tqdm.auto import tqdm

from fedpgp.runs.setup import Silent


class ProgressBars(Silent):
    """A reporter that draws a bar on standard error for whatever lasts, and prints notices.

    >>> fedpgp.compare(["promptfl", "fedpgp"], reporter=fedpgp.ProgressBars())  # doctest: +SKIP
    """

    def __init__(self) -> None:
        self._bars: dict[str, tqdm[Any]] = {}

    def progress(self, what: str, done: int, total: int, detail: str = "") -> None:
        if what not in self._bars:
            self._bars[what] = tqdm(total=total, desc=what, initial=done, bar_format="{l_bar}{bar}{n}/{total}{postfix}")
        bar = self._bars[what]
        bar.total = total
        bar.set_postfix_str(detail, refresh=False)
        bar.update(done - bar.n)
        if done >= total:
            self._bars.pop(what).close()

    def notice(self, text: str) -> None:
        tqdm.write(text)
