"""The plugin for EPyMARL checkouts: what it puts there (`inside/`), and how (`installation.py`)."""
