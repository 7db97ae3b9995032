"""Several processes: the topology of one process on the same global batch, on all ranks, or an error on all."""

import pytest
import torch
from torch.multiprocessing import spawn

from esl_sparse.rewire.ranks import checksum
from esl_sparse.topology import BlockLayout, BlockTopology

from . import ranks_jobs

JOBS = {2: ("equivalence", "disagreement", "index_stays", "silent_on_one", "refusals"), 4: ("equivalence",)}


@pytest.fixture(scope="module")
def one():
    """What one process makes of it."""
    found = {}
    for rule in ("gradient", "momentum", "random", "random_unfired"):
        torch.manual_seed(0)
        net = ranks_jobs.model()
        net.load_state_dict(ranks_jobs.start())
        found[rule] = ranks_jobs.train(net, rule), net.state_dict()
    return found


@pytest.mark.parametrize("size", JOBS)
def test_ranks(size, one, tmp_path):
    spawn(ranks_jobs.run, (size, str(tmp_path), JOBS[size]), nprocs=size)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(size)]
    for rule, (reports, state) in one.items():
        assert len(reports) == 2 and all(grown > 0 and not note for _, grown, note in reports[0])
        for rank in found:
            theirs, their_state = rank["equivalence"][rule]
            assert theirs == reports
            for name, value in state.items():
                if "indices" in name:
                    assert torch.equal(their_state[name], value), (rule, name)
                else:
                    torch.testing.assert_close(their_state[name], value, rtol=1e-9, atol=1e-12)
            assert all(
                torch.equal(a, b)
                for a, b in zip(their_state.values(), found[0]["equivalence"][rule][1].values(), strict=True)
            )
    if size == 4:
        return
    for rank in found:
        message, unchanged, iteration = rank["disagreement"]
        assert message.startswith("the blocks of 0, 4 would stand elsewhere on some ranks") and unchanged
        assert iteration == 0
        assert rank["index_stays"] == (True, True)
        note, grown, ids = rank["silent_on_one"]
        assert not note and grown > 0 and torch.equal(ids, found[0]["silent_on_one"][2])
        refused = rank["refusals"]
        for name in ("unwrapped", "unwrapped DeepR"):
            assert refused[name].startswith(
                "model: expected it wrapped in DistributedDataParallel, for there are 2"
            )
        assert refused["redistribute"].startswith("redistribute: changes how many blocks")
        assert refused["drawn"].startswith("grow: a rule that draws its own counts: changes how many")
        assert refused["zero"].startswith("optimizer: ZeroRedundancyOptimizer keeps")
        assert refused["sharded"].startswith("model: FSDPSequential shards parameters")


def test_checksums_tell_topologies_apart():
    layout, sums = BlockLayout(64, 64, 1, 1), set()
    g = torch.Generator().manual_seed(0)
    for _ in range(100):
        ids, other = torch.randperm(64 * 64, generator=g)[:1001].tensor_split([1000])
        one_elsewhere = torch.cat([ids[1:], other])
        for some in (ids, one_elsewhere, ids[1:]):
            sums.add(int(checksum(BlockTopology.from_block_ids(some.sort().values, layout))))
        again = BlockTopology.from_block_ids(ids.sort().values, layout)
        assert int(checksum(again)) in sums
    assert len(sums) == 300
