"""A prior and known codes -> new codes: the sampler, the sliding window, and the decoding strategies."""
