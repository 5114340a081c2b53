"""The arms of a comparison: what transfer has to be held against. Without torch, for the command line."""

ARMS = ("pixels", "random", "source", "finetuned", "scratch", "generated", "target")

IN_WORDS = {
    "pixels": "logistic regression on the pixels",
    "random": "the same on the maps of a network that has learnt nothing",
    "source": "the same on the maps of a network pretrained on the source, frozen",
    "finetuned": "the network pretrained on the source, trained further as a whole",
    "scratch": "the same network trained from nothing",
    "generated": "the same, with as many examples again: a variational autoencoder of the source, adapted to the "
    "labels, draws them",
    "target": "logistic regression on the maps of a network pretrained on the target's images, without their labels",
}
BASELINE = "scratch"
TRANSFERS = ("source", "finetuned", "generated")  # what would be negative transfer if it fell below the baseline
