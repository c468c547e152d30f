"""What the native call relies on: offsets in objects of Python and NumPy, and the layout of its own tables.

Here: constants that the native code and those who fill its tables share.
Not here: the code (callpath_ir.py), its helpers (callpath_helpers.py), who fills the tables (callpath.py).
"""

from __future__ import annotations

HEADER = object.__basicsize__       # of every Python object; its type stands in the last word
OB_TYPE = HEADER - 8
DATA, ND, DIMS, DESCR, FLAGS = HEADER, HEADER + 8, HEADER + 16, HEADER + 40, HEADER + 48
ARRAY_FLAGS = 0x1 | 0x100           # C order, aligned
WRITEABLE = 0x400
SELF_DATA = bytes.__basicsize__ - 1  # where the contents of a bytes object begin
SIZE = HEADER                       # of a tuple, list or dict
TUPLE_ITEMS = tuple.__basicsize__   # where the items of a tuple begin
LIST_ITEMS = HEADER + 8             # the pointer to the items of a list

# Run-time addresses: name -> index in @api
API = {name: i for i, name in enumerate((
    "ndarray", "PyArray_Empty", "PyObject_Vectorcall", "Py_IncRef", "Py_DecRef", "PyEval_SaveThread",
    "PyEval_RestoreThread", "PyTuple_New", "PyTuple_SetItem", "PyList_New", "PyList_SetItem", "PyDict_New",
    "PyDict_SetItem", "PyDict_GetItem", "PyObject_GetAttr", "PyErr_Clear", "PyLong_AsLongLongAndOverflow",
    "PyLong_FromLongLong", "float", "int", "true", "false", "find_pool", "pool", "pool_known"))}
NUMPY_SLOTS = {"ndarray": 2, "PyArray_Empty": 184}  # of NumPy's C table, the same in every version since 1.7

# The record of one program: name -> index of its 8-byte field
RECORD = {name: i for i, name in enumerate((
    "fallback", "nargs", "nkeywords", "ninputs", "nheld", "ndonated", "nparams", "noutputs", "nconstants", "nflat",
    "nresult", "keywords", "run", "sizes", "alloc", "inputs", "outputs", "constants", "result", "at_scalars",
    "at_results", "at_dims", "at_flat", "at_objects", "at_stack", "frame", "arena_lock", "arena", "arena_size"))}
WORKING = -1  # what ``alloc`` of a record is asked for if not for an output: working memory

# A row of ``inputs``: what is expected of one object, which is found in ``whence`` at ``index`` (a position, or a
# key) and noted as number ``note``; ``holder`` is the number of the container.  Containers stand before their items.
INPUT = {name: i for i, name in enumerate((
    "kind", "object", "rank", "dims", "slot", "itemsize", "whence", "holder", "index", "note"))}
ARRAY, SAME, FLOAT64, FLOAT32, INTEGER, INT_FLOAT64, INT_FLOAT32, BOOL, CONTAINER, OBJECT = KINDS = range(10)
IN_ARGS, IN_TUPLE, IN_LIST, IN_DICT, IN_FIELD = range(5)
CONSTANT_DIM, BIND_DIM, SAME_DIM = 0, 1, 2  # of an array: the size is ..., makes a symbol, must be that symbol

# A row of ``outputs``; ``over``: the noted number of the argument in whose memory it lies, or -1
OUTPUT = {name: i for i, name in enumerate(("descr", "rank", "at", "itemsize", "source", "over"))}

# A row of ``result``: what is put on the stack, from the ``count`` objects that lie on top of it.
RESULT = {name: i for i, name in enumerate(("make", "object", "count", "keys"))}
MAKE_OUTPUT, MAKE_SAME, MAKE_TUPLE, MAKE_LIST, MAKE_DICT, MAKE_CALL = range(6)
