"""The sabotage bench: a catalogue of ways in which a quantized CLIP release goes wrong.

`python -m benchmarks.sabotage` runs it on the reference model and writes `report.md`.
"""
