"""What is right and wrong with a file that was handed over, without a suite: `quantgate check`."""
