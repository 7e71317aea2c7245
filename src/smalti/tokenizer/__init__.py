"""Stage 1, the tokenizer: images <-> codes. Read `vqgan`, then `encoder`, `quantizers`, `decoder`, `blocks`."""
