"""Prepares PASCAL-Part's cars and horses."""
