"""`python -m bot` and the console script `conductor`."""

from bot.cli.main import main

if __name__ == "__main__":
    main()
