"""Judging generated images against real ones.

judge        what `scripts/evaluate_gan.py` does; options: its flags
images       the images that are judged; evaluation: their features, streamed, and the metrics of those
features     the networks; inception_weights: where the weights of FID's lie
distances    distances and shares as pure functions of features
statistics_files   pytorch-fid's .npz files
memorisation       nearest training images
classifier         the CIFAR-10 classifier that serves as a feature network; its options and training
"""
