"""Runs that are killed, full disks, power loss, and numbers that are not finite."""
