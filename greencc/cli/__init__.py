"""The command line. Commands are imported only when they are run, so that `greencc --help` is quick."""
