"""The procedural world of cars, horses and faces: a renderer with exact part masks."""
