"""Training of both stages: `config` says with what, `tokenizer` and `prior` what a step is, `loop` runs, `folder` keeps."""
