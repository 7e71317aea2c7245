"""The command `smalti`, also as `python -m smalti`."""

from smalti.cli.main import main

if __name__ == "__main__":
    main()
