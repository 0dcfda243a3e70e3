"""The command line: parse, call, print. No mathematics lives here, and `-h` imports no PyTorch."""
