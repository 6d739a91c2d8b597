"""Digits on unequal devices: a Flower app with five lines of FedHybrid."""
