"""Planted mutants: each changes the package by a few characters, and the tests it names must fail."""
