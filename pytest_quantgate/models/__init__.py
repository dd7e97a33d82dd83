"""The FP16 loaders and the ModelOpt quantizers; checkpoint save and restore. No pytest here."""
