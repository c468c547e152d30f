"""LLVM: the only door to llvmlite.  Text of LLVM IR is built here, compiled here, loaded here."""
