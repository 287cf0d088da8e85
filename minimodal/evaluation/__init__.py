"""Scores: metrics, judges, the scoreboard of the Shapes world."""
