"""Algorithm 1 of ESL-SNNs (AAAI 2023), line by line: a spiking network trained sparse from scratch.

python examples/minimal.py [mnist | fashion-mnist | digits]
"""

import sys

import torch
from torch import nn

import esl_sparse as esl
from esl_sparse.data import load

T, EPOCHS, BATCH, LR = 4, 5, 128, 5e-3
DENSITY, BLOCK, ALPHA, UPDATES = 0.1, (4, 4), 0.5, 30

torch.manual_seed(0)
dataset = load(sys.argv[1] if len(sys.argv) > 1 else "mnist")
train, test = dataset.train, dataset.test

# Lines 1-3: each sparse layer starts as an Erdos-Renyi graph (Equation 1).
hidden = esl.nn.SparseLinear(dataset.features, 800, density=DENSITY, block_size=BLOCK)
# Line 4: the other parameters. The readout is dense and does not spike.
lif, readout = esl.nn.LIF(tau=0.5), nn.Linear(800, dataset.classes)
model = nn.ModuleList([hidden, lif, readout])
loss_fn, optimizer = esl.nn.TETLoss(), torch.optim.Adam(model.parameters(), LR)
t_end = EPOCHS * -(-len(train) // BATCH) * 3 // 4
rewirer = esl.Rewirer(
    model, optimizer, prune="set", grow="random", alpha=ALPHA, interval=t_end // UPDATES, t_end=t_end
)


def forward(images):
    current = hidden(images.flatten(1))  # [N, 800]; the image is static, so its current is computed once
    return readout(lif(current.expand(T, *current.shape)))  # [T, N, classes]


report = None
for epoch in range(EPOCHS):
    for index in torch.randperm(len(train)).split(BATCH):  # line 5: each training iteration
        images, labels = train[index]
        optimizer.zero_grad()
        loss = loss_fn(forward(images), labels)  # line 6: standard training procedure
        loss.backward()
        optimizer.step()  # line 7: weights update
        # Lines 8-15: every T_iter iterations each layer loses a fraction alpha and regrows as much.
        # There is no mask to multiply (line 13): absent weights do not exist.
        report = rewirer.step() or report
    with torch.no_grad():
        hits = sum((forward(x).mean(0).argmax(1) == y).sum().item() for x, y in test.batches(256))
    print(f"epoch {epoch + 1}: loss {loss.item():.3f}, test accuracy {hits / len(test):.2%}")

# Line 17: the sparse network; hidden.values and hidden.topology are all that there ever was of W.
print(f"{hidden.nnz:,} of {dataset.features * 800:,} weights at any time", report, sep="\n")
