"""`python -m greencc` is the command line."""

from greencc.cli.main import run

if __name__ == "__main__":
    run()
