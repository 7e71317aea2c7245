"""Training of both stages: `config` says with what, `tokenizer` and `prior` what a step is, `playing` and `networks` of what
kinds, `loop` runs, `folder` keeps."""
