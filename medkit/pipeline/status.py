"""How far a run has come, as text for a terminal or a log."""

import re
import shutil
import threading
import time


class Status:
    """Progress as text: a line that is redrawn each second in a terminal, one each half minute in a log."""

    def __init__(self, out):
        self.out, self.terminal = out, out.isatty()
        self.name, self.at, self.tail = "", "", ""
        self._lock, self._over = threading.Lock(), threading.Event()
        self._ticker = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self):
        self._ticker.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._ticker.join()

    def line(self, text: str) -> None:
        with self._lock:
            print(("\r\x1b[K" if self.terminal else "") + text, file=self.out, flush=True)

    def start(self, name: str) -> None:
        self.at, self.tail, self._began = "", "", time.monotonic()
        if not self.terminal:
            self.line(f"{name:<22} started")
        self.name = name

    def cell(self, number: int, of: int) -> None:
        self.at, self.tail = f"cell {number}/{of}", ""

    def write(self, text: str) -> None:
        """A kernel's output: its last line that says anything is the tail."""
        lines = [part.strip() for part in re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text))]
        self.tail = next((part for part in reversed(lines) if part), self.tail)

    def flush(self) -> None:
        """papermill asks for it."""

    def end(self, outcome: str) -> None:
        name, self.name = self.name, ""
        self.line(f"{name:<22} {minutes(time.monotonic() - self._began)}  {outcome}")

    def _tick(self) -> None:
        while not self._over.wait(1 if self.terminal else 30):
            if not self.name:
                continue
            text = f"{self.name:<22} {minutes(time.monotonic() - self._began)}  {self.at}  {self.tail}"
            with self._lock:
                if self.terminal:
                    width = shutil.get_terminal_size().columns - 1
                    print("\r\x1b[K" + text[:width], end="", file=self.out, flush=True)
                else:
                    print(text[:100], file=self.out, flush=True)


def minutes(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes:2}:{seconds:02}"
