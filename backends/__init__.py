"""Machines that run programs: interpreters, native CPU code, CUDA.

Here: nothing but the check below.  Read next: runtime.py.
"""

# From the repository root a bare `import backends` would find this folder and load a second copy of every module.
if __name__ != "flowc.backends":
    raise ImportError("import flowc.backends instead of backends")
