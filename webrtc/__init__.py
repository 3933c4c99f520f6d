"""Wire to float32 mono and back: recordings in any common container, encoded answers. No model, no Ray."""
