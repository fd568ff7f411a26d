"""The Lightning run: options, set-up, module, data module, checkpoints, and FSDP.

Not here: the command line, which builds these (``cli.py``), and single computations, which are in the packages below.
"""
