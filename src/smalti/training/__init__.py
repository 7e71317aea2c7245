"""Training of both stages: `config` has the settings, `stage1` and `stage2` a step of each, `loop` runs it, `run_folder` stores it."""
