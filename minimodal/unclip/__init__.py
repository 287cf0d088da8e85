"""unCLIP, the method of DALL·E 2: a prior from captions to CLIP's image embeddings (`prior.py`), a
diffusion decoder from those to pixels (`decoder.py`), and what one does with both (`toolbox.py`).
"""
