"""Ops: each folder holds one op, as raw ops with an autograd Function (op), a definition (reference), kernels."""
