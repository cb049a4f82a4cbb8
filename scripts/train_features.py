"""Train the classifier behind fd_cifar10net: python scripts/train_features.py --data train.zip --test test.zip

Exit statuses: 0 at the end; 2 after a mistake or Ctrl-C; 75 when SIGTERM has stopped it. Both signals save it first;
the same command goes on.
"""

import command_line

from gan.judging.classifier_options import ClassifierConfig


def main() -> None:
    config = command_line.parse(ClassifierConfig, description=__doc__ or "")

    def start() -> None:
        from gan.judging.classifier_training import train_classifier

        train_classifier(config)

    command_line.run(start)


if __name__ == "__main__":
    main()
