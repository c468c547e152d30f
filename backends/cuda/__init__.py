"""CUDA through PTX: code generation, the driver, the PTX interpreter, running programs.

Read next: ptx.py (kernels to PTX), driver.py (the two drivers), runtime.py (programs), sim/ (the interpreter).
"""
