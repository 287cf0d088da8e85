"""How the systems are trained: one engine, one task a system, recipes, checkpoints, reports."""
