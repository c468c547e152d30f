"""The ops.  Importing this package fills the registry of flowc.op; an op is one record in one of these files.

Here: elementwise.py, arithmetic.py (families of scalar expressions), movement.py, windows.py, indexing.py, reduce.py,
scan.py, order.py, select.py, contract.py, random.py; rules.py and samples.py are what they share.  Read next: rules.py.
"""

from flowc.op import REGISTRY
from flowc.ops import (  # noqa: F401  (imported for their records)
    arithmetic,
    contract,
    elementwise,
    indexing,
    movement,
    order,
    random,
    reduce,
    scan,
    select,
    windows,
)

BUILTIN = frozenset(REGISTRY)  # names of flowc's own ops; what is registered later is somebody else's
