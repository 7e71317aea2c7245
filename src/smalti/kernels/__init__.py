"""CPU kernels: one `.py` and one `.c` each, and `native`, which compiles them. Nothing else knows that they exist."""
