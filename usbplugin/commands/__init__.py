"""What the commands do, one module for each kind; ``cli`` parses, and calls them."""
