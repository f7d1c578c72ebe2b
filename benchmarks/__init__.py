"""Figures and attacks. A package of its own, because Opacus installs one of the same name."""
