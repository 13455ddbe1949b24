"""Run the command line as `python -m netsonde`."""

from netsonde.cli import main

if __name__ == "__main__":
    main()
