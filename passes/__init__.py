"""Passes: from graph to graph, and from graph to kernels and a plan.

Here: nothing but the check below.  Read next: pipeline.py, the list of passes.
"""

# From the repository root a bare `import passes` would find this folder and load a second copy of every module.
if __name__ != "flowc.passes":
    raise ImportError("import flowc.passes instead of passes")
