"""Stage 1, the tokenizer: pictures <-> codes. Read `vqgan`, then `encoder`, `quantizers`, `decoder`, `blocks`."""
