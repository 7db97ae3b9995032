import threading

import pytest
import torch

from esl_sparse.arena import Arena


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.uint8])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 4), (5, 7, 64), (1, 1025)])
def test_lends_what_was_asked_for(shape, dtype):
    with Arena().borrow(shape, dtype) as buffer:
        assert (buffer.shape, buffer.dtype, buffer.is_contiguous()) == (torch.Size(shape), dtype, True)
        assert buffer.data_ptr() % 64 == 0


def test_reuses_memory_and_counts_it():
    arena = Arena()
    with arena.borrow((1000,)) as a:
        address = a.data_ptr()
        with arena.borrow((1000,)) as b:
            assert b.data_ptr() != address
            assert (arena.lent, arena.bytes) == (2, 2 * 4096)
    with arena.borrow((10, 100)) as c, arena.borrow((1024,)) as d:
        assert address in (c.data_ptr(), d.data_ptr())
    with arena.borrow((1025,)):
        assert arena.bytes == 2 * 4096 + 8192
        assert arena.release() == 2 * 4096
        assert arena.bytes == 8192
    assert (arena.lent, arena.release(), arena.bytes) == (0, 8192, 0)


def test_an_exception_gives_back():
    arena = Arena()
    with pytest.raises(KeyError), arena.borrow((10,)):
        raise KeyError
    assert arena.lent == 0


def test_poison():
    arena = Arena()
    with arena.borrow((100,)) as buffer:
        buffer.zero_()
    arena.poison = True
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        with arena.borrow((100,), dtype) as buffer:
            assert buffer.isnan().all()


def test_threads_never_share_a_buffer():
    arena = Arena()
    failures = []

    def work(number):
        for _ in range(200):
            with arena.borrow((64,), torch.int64) as buffer:
                buffer.fill_(number)
                failures.extend(buffer[buffer != number].tolist())

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures
    assert arena.lent == 0
    assert arena.bytes <= 4 * 4096
