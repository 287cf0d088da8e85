"""Text-to-image models, small enough to read: CLIP, VQGAN, DALL-E, VQGAN-CLIP and unCLIP."""
