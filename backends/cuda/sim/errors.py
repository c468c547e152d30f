"""What the interpreter finds wrong with a kernel or a launch.

Each class is one kind of fault with a stable code; the text names the instruction, the block and the thread.
"""

from __future__ import annotations

from collections.abc import Sequence

from flowc.diag import FlowcError


class SimulatorError(FlowcError):
    """Base of the faults below."""

    CODE, CURE = "C330", "look at the kernel with as_text('ptx')"

    def __init__(self, text: str, notes: Sequence[str] = ()):
        super().__init__(self.CODE, text, notes=notes, cure=self.CURE)


class PtxError(SimulatorError):
    """Text outside the grammar, or an instruction the interpreter does not know."""

    CODE, CURE = "C331", "use instructions of the interpreter's table, or add a row to it"


class LaunchError(SimulatorError):
    """A launch that a device would refuse."""

    CODE, CURE = "C332", "launch with the sizes and arguments that the kernel declares"


class MemoryFault(SimulatorError):
    """An access outside every allocation, or a misaligned one."""

    CODE, CURE = "C333", "check the index and the size of the buffer"


class RaceFault(SimulatorError):
    """Two threads of a block touch one place of shared memory, one of them writing, without a barrier in between."""

    CODE, CURE = "C334", "put a barrier between the two accesses"


class BarrierFault(SimulatorError):
    """Threads that wait for others which never come, or a barrier that only part of a block reaches."""

    CODE, CURE = "C335", "let all threads of a block reach the same barriers"
