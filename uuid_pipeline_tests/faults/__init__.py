"""What is left when a process dies or others write meanwhile."""
