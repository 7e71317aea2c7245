"""Training of both stages: `config` says with what, `tokenizer` and `prior` what one step is, `loop` runs them, `folder` keeps the results."""
