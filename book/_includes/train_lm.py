"""A language model with IMM on many processes, each with some of the text.

torchrun --standalone --nproc-per-node 2 train_lm.py
"""

import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import imm_lib as imm
from imm_lib.experiments import language as lm

V, STREAMS, UNROLL = 40, 20, 25


class LSTM(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(V, 32)
        self.lstm = torch.nn.LSTM(32, 32, batch_first=True)
        self.head = torch.nn.Linear(32, V)

    def forward(self, words, state=None):
        return self.lstm(self.embedding(words), state)


dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
rank, ranks = dist.get_rank(), dist.get_world_size()
device = torch.device("cpu")
if torch.cuda.is_available():
    device = torch.device("cuda", rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
text, side, held_out = (
    lm.topics(n, seed).to(device)
    for seed, n in enumerate((3000, 30000, 3000))
)
torch.manual_seed(0)
model = DistributedDataParallel(LSTM().to(device))
bigram = imm.KneserNeyBigram.fit(side, V)
world = dist.group.WORLD
term = imm.FusedIMM(bigram, V, V, labels="seen", group=world).to(device)
last = model.module.head
optimiser = torch.optim.Adam(model.parameters(), 1e-2)
words = text[: len(text) // STREAMS * STREAMS].view(STREAMS, -1)
words = words[rank::ranks]  # this process's streams; as many on each
for _ in range(2):
    state = None
    for start in range(0, words.shape[1] - 1, UNROLL):
        block = words[:, start : start + UNROLL + 1]
        hidden, state = model(block[:, :-1], state)
        state = tuple(part.detach() for part in state)
        short, label = block[:, :-1].flatten(), block[:, 1:].flatten()
        # the cross-entropy and IMM, with the last layer
        loss = term(
            hidden.flatten(0, 1), last.weight, last.bias, label, short
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
if rank == 0:
    with torch.no_grad():
        hidden, _ = model.module.eval()(held_out[None, :-1])
        loss = cross_entropy(last(hidden[0]), held_out[1:]).item()
    print(f"held-out loss: {loss:.3f} nats; risk {term.risk.item():.3f}")
dist.destroy_process_group()
