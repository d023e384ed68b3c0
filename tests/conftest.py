"""What all tests share."""

import torch

# One thread: the ranks of a test share two cores, and a forked child must not inherit a thread pool.
torch.set_num_threads(1)
