"""Electron's inter-process communication: the main process is this Python, renderers run unmodified JavaScript."""
