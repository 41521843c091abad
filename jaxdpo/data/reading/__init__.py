"""Files of any form → checked `PreferencePair`s."""
