"""VQGAN+CLIP: a picture for a prompt by optimising it (Crowson et al. 2022).

`prompts.py` reads what is asked for, `guide.py` says how far a picture is from it, `optimise.py`
follows the gradient and `search.py` tries moves on codes instead. Trained models are arguments.
"""
