"""Progress messages: the callback that services take, and the logger ``buildkit_tasks`` as its default."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable

from buildkit_tasks.printable import escape_message
from buildkit_tasks.system.command import redact

__all__ = ["Notify", "NotifyStream", "log_progress"]

Notify = Callable[[str], None]


def log_progress(message: str) -> None:
    """Log a message, redacted and printable, with level INFO."""
    logging.getLogger("buildkit_tasks").info("%s", escape_message(redact(message)))


class NotifyStream(io.StringIO):
    """A text stream that reports each line of a program's output as a progress message."""

    def __init__(self, notify: Notify) -> None:
        super().__init__()
        self._notify = notify

    def write(self, text: str) -> int:
        """Report the lines of ``text``, which are whole lines."""
        for line in text.splitlines():
            self._notify(line)
        return len(text)
