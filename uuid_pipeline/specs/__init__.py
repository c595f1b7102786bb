"""The specifications that come with the project."""
