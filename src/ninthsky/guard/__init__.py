"""Fault -> the card's name -> cause -> remedy. Imports no torch, except in `probe.group` and `probe.sockets`."""
