"""The HTML report: one file that stands by itself, its sections one file each."""
