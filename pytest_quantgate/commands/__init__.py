"""The commands of `quantgate`, one file each.

A command is a module with `add(commands)`, which declares its arguments, and `run(parsed,
environ=)`, which returns the exit status. What is heavy is imported in `run`.
"""
