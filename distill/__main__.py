"""`python -m distill`, which torchrun and accelerate launch need."""

from distill.cli import main

main()
