"""Pictures as the paper shows them: an annotated image, and what each method finds in others."""
