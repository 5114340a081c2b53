"""Names of a comparison's arms: transfer, and the baselines that it has to beat. Imports no torch."""

ARMS = ("pixels", "random", "source", "finetuned", "scratch", "generated", "target")

IN_WORDS = {
    "pixels": "logistic regression on the pixels",
    "random": "the same on the maps of an untrained network",
    "source": "the same on the maps of a network pretrained on the source, frozen",
    "finetuned": "the network pretrained on the source, fine-tuned as a whole",
    "scratch": "the same network trained from scratch",
    "generated": "the same, with as many examples again, drawn by a variational autoencoder that was pretrained on "
    "the source and adapted to the labels",
    "target": "logistic regression on the maps of a network pretrained on the target's images, without their labels",
}
BASELINE = "scratch"
TRANSFERS = ("source", "finetuned", "generated")  # below the baseline, these are negative transfer
