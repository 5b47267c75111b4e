"""The tie between the launcher and its own processes: when the launcher dies, so do they."""

import ctypes
import os
import signal
import sys

LAUNCHER_PID = "WAYBILL_LAUNCHER_PID"
_PR_SET_PDEATHSIG = 1


def die_with_parent(signal_number: int = signal.SIGKILL) -> None:
    """Ask Linux to end this process when its parent ends, whatever ends that. Elsewhere: nothing.

    Forked pool processes do not inherit it and must ask for themselves.

    Args:
        signal_number: What to be sent. SIGKILL leaves no orphan, and the ledger loses nothing by it.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal_number)


def die_with_launcher() -> None:
    """The same, for a process that ``waybill up`` started; does nothing for one started by hand.

    Raises:
        SystemExit: The launcher died before we could ask.
    """
    launcher = os.environ.pop(LAUNCHER_PID, None)
    if launcher is None:
        return
    die_with_parent()
    if os.getppid() != int(launcher):
        raise SystemExit("the launcher is gone")
