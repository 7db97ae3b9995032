"""A SpikingJelly script that trains a spiking convolutional network on event frames.

The three lines that end in "# +" make it sparse; without them it is SpikingJelly alone.

python examples/spikingjelly_three_lines.py [dvs-fashion-mnist | dvs-mnist]
"""

import sys

import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn
from torch.nn import functional as F

import esl_sparse as esl
import esl_sparse.data

CHANNELS = (32, 128, 512, 512)
EPOCHS, BATCH, LR = 1, 32, 1e-3


def lif():
    return neuron.LIFNode(
        tau=2.0, decay_input=False, surrogate_function=surrogate.PiecewiseQuadratic(1.0), step_mode="m"
    )


def network(channels=CHANNELS, size=28, classes=10):
    """Frames [T, N, 2, size, size] to outputs [T, N, classes]; all convolutions but the third pool."""
    modules, before = [], 2
    for i, after in enumerate(channels):
        modules += [
            layer.Conv2d(before, after, 3, padding=1, bias=False, step_mode="m"),
            layer.BatchNorm2d(after, step_mode="m"),
            lif(),
        ]
        if i != 2:
            modules.append(layer.AvgPool2d(2, step_mode="m"))
            size //= 2
        before = after
    modules += [layer.Flatten(step_mode="m"), layer.Linear(before * size * size, classes)]
    return nn.Sequential(*modules)


def outputs(net, frames):
    """Frames [N, T, 2, size, size], and the answer [N, classes]: the mean over time."""
    functional.reset_net(net)
    return net(frames.transpose(0, 1)).mean(0)


@torch.no_grad()
def accuracy(net, split):
    net.eval()
    hits = sum((outputs(net, x).argmax(1) == y).sum().item() for x, y in split.batches(128))
    net.train()
    return hits / len(split)


def main(data, net, epochs=EPOCHS):
    steps = epochs * -(-len(data.train) // BATCH)
    esl.sparsify(net, density=0.1)  # +
    optimizer = torch.optim.Adam(net.parameters(), LR)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    rewirer = esl.Rewirer(net, optimizer, interval=50, t_end=steps * 3 // 4)  # +
    for epoch in range(epochs):
        for i, index in enumerate(torch.randperm(len(data.train)).split(BATCH)):
            frames, labels = data.train[index]
            loss = F.cross_entropy(outputs(net, frames), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            rewirer.step()  # +
            if i % 100 == 0:
                print(f"epoch {epoch}, step {i}: loss {loss.item():.3f}", flush=True)
        print(f"epoch {epoch}: test accuracy {accuracy(net, data.test):.2%}")


if __name__ == "__main__":
    torch.manual_seed(0)
    data = esl.data.load(sys.argv[1] if len(sys.argv) > 1 else "dvs-fashion-mnist")
    main(data, network(size=data.shape[-1], classes=data.classes))
