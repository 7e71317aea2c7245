"""The command line, a file for each command or group of commands. PyTorch is imported when a command runs, so that
`--help` is fast."""
