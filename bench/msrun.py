"""``python -m bench.msrun ARGUMENTS``: MindSpore's ``msrun``, which ends when the process that started it does.

msrun puts every worker into a session of its own and leaves them behind when it is killed. Here it is ended as by
Ctrl-C, on which it kills its workers, and its number tells them whose child they are (``bench.child``).
"""

from __future__ import annotations

import os
import signal
import sys

from bench.lifeline import PARENT, end_with_parent


def main() -> None:
    """Runs msrun with this process's arguments."""
    end_with_parent(int(os.environ[PARENT]), signal.SIGINT)
    signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    os.environ[PARENT] = str(os.getpid())
    # msrun calls its workers' interpreter "python".
    os.environ["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)])
    from mindspore.parallel.cluster.run import main as msrun  # noqa: PLC0415 - seconds, and the parent may be gone

    msrun()


if __name__ == "__main__":
    main()
