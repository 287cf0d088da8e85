"""The synthetic worlds: captioned scenes, their language, and oracles that read pictures back."""
