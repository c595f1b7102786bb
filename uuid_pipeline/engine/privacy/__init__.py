"""Privacy: whose documents these are, what is shown of them, and how they are erased or kept no longer."""
