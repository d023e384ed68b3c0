"""What a run's own record says, as one page, and several runs side by side.

Nothing of a run is built, and no code of the user's is run.
"""
