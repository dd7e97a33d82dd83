"""ModelOpt: recipes, attention classes, calibration, quantizers by name, checkpoints."""
