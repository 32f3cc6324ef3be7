"""Tests against a real USB stack, and the virtual machine and fixtures that give them one."""
