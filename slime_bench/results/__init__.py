"""What a trial leaves in its folder: the result, its identity, and the files beside it."""
