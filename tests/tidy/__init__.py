"""Tests that keep the house in order: who may import whom, who meets the world, how large things get."""
