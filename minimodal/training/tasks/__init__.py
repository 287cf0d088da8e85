"""How each system is trained, side by side: batches, losses, what follows a step, scores.

A task is what the engine needs to know of a system (see `contract.Task`). Pictures travel as
uint8 (B, 3, H, W) and become float on the device. Everything random is drawn in `batch`, for the
whole global batch, from (seed, step); a process then takes its own rows. So any number of
processes, and a resumed run, see what a single uninterrupted process would.

One file a system; read the system of the same name before.
"""
