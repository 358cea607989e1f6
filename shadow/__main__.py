"""python -m shadow: the command `shadow`."""

from shadow.commands.main import main

if __name__ == "__main__":
    main()
