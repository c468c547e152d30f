"""An interpreter of PTX text on NumPy: GPU code runs, and is checked, on machines without a GPU.

``Module(ptx_text)``; ``Device(nbytes)`` with ``alloc``, ``free``, ``put``, ``get`` and
``launch(module, kernel_name, grid, block, shared_bytes, args)``; ``device.stats`` counts.

Checked on every access: bounds of the allocation, alignment, races in shared memory between barriers.  Checked at
barriers and warp instructions: that everybody arrives.  Not modelled: time, the order of memory between blocks, the
error of approximate instructions, tensor cores, asynchronous copies.

Read in this order: parse.py, flow.py, numeric.py, instructions.py, instructions_memory.py, translate.py, memory.py,
machine.py.
"""

from flowc.backends.cuda.sim.errors import BarrierFault, LaunchError, MemoryFault, PtxError, RaceFault, SimulatorError
from flowc.backends.cuda.sim.machine import Device, Module, Statistics

__all__ = ["BarrierFault", "Device", "LaunchError", "MemoryFault", "Module", "PtxError", "RaceFault", "SimulatorError",
           "Statistics"]
