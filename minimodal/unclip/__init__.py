"""unCLIP, the method of DALL·E 2: a prior from captions to CLIP's image embeddings (`prior.py`), a
diffusion decoder from those to pixels (`decoder.py`), an up-sampler. What one does with them is in
`uses/unclip.py`.
"""
