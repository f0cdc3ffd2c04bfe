"""Progress of a run, as text for a terminal or a log."""

import re
import shutil
import threading
import time


class Status:
    """Prints progress: one line redrawn every second in a terminal, a new line every 30 s in a log."""

    def __init__(self, out):
        self.out, self.terminal = out, out.isatty()
        self.name, self.position, self.tail = "", "", ""
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._ticker = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self):
        self._ticker.start()
        return self

    def __exit__(self, *_):
        self._closed.set()
        self._ticker.join()

    def line(self, text: str) -> None:
        with self._lock:
            print(("\r\x1b[K" if self.terminal else "") + text, file=self.out, flush=True)

    def start(self, name: str) -> None:
        self.position, self.tail, self._started = "", "", time.monotonic()
        if not self.terminal:
            self.line(f"{name:<22} started")
        self.name = name

    def cell(self, number: int, total: int) -> None:
        self.position, self.tail = f"cell {number}/{total}", ""

    def write(self, text: str) -> None:
        """Take a kernel's output; the status shows its last line that is not empty."""
        lines = [line.strip() for line in re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text))]
        self.tail = next((line for line in reversed(lines) if line), self.tail)

    def flush(self) -> None:
        """Called by papermill."""

    def end(self, outcome: str) -> None:
        name, self.name = self.name, ""
        self.line(f"{name:<22} {minutes(time.monotonic() - self._started)}  {outcome}")

    def _tick(self) -> None:
        while not self._closed.wait(1 if self.terminal else 30):
            if not self.name:
                continue
            text = (
                f"{self.name:<22} {minutes(time.monotonic() - self._started)}  {self.position}  {self.tail}"
            )
            with self._lock:
                if self.terminal:
                    width = shutil.get_terminal_size().columns - 1
                    print("\r\x1b[K" + text[:width], end="", file=self.out, flush=True)
                else:
                    print(text[:100], file=self.out, flush=True)


def minutes(seconds: float) -> str:
    """3:07 or 1:02:03."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes:2}:{seconds:02}"
