"""The command line, one file a verb family. PyTorch is imported when a command runs, so that `--help` answers at
once."""
