"""Run the command line: `python -m fedpgp`."""

from fedpgp.cli import main

if __name__ == "__main__":
    main()
