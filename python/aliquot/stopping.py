"""To stop on all ranks after the same step."""

from __future__ import annotations

from aliquot.world import init


def should_stop() -> bool:
    """Whether to leave the training loop: every rank asks once in each of its steps, and all get the same answer.

    True from the same call on, on all ranks, soon after one of them got a SIGTERM, or called `request_stop`. Save then,
    and leave with `sys.exit(143)`. A second SIGTERM ends the process at once.

    The first call installs the handler of SIGTERM, if the signal has its default effect; programs with a handler of
    their own call `request_stop` in it. Except when all stop, nobody waits for anybody here.
    """
    control = init().control
    control.stop_on_terminate()
    return control.should_stop()


def request_stop() -> None:
    """Asks all ranks to stop: `should_stop` says so to each. May be called in a handler of a signal."""
    init().control.request_stop()
