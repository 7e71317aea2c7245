"""Training of both stages: `config` has the settings, `stage1` and `stage2` a step of each, `loop` runs,
`run_folder` stores."""
