"""CPU kernels: one `.py` and one `.c` each, and `native`, which compiles them. No other package depends on their
existence."""
