"""What the program says about itself. Nothing in here decides anything."""
