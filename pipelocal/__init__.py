"""Pipeline-parallel training without a global backward pass."""
