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


# Tensors that bring their memory back. 300,000 floats are large enough to be lent.


def test_a_tensor_brings_its_memory_back():
    arena = Arena()
    a = arena.tensor((3, 100_000))
    assert (a.shape, a.dtype, a.is_contiguous(), a._is_view()) == ((3, 100_000), torch.float32, True, False)
    assert a.data_ptr() % 64 == 0
    assert (arena.lent, arena.bytes) == (1, 1_310_720)
    address = a.data_ptr()
    del a
    assert (arena.lent, arena.bytes) == (0, 1_310_720)
    b = arena.tensor((150_000,), torch.int64)
    assert (b.data_ptr(), b.dtype) == (address, torch.int64)
    with arena.borrow((300_000,)) as c:
        assert c.data_ptr() != address
        assert arena.lent == 2


@pytest.mark.parametrize("shape,dtype", [((), torch.float64), ((0, 3), torch.float32), ((7, 9), torch.int64)])
def test_small_tensors_are_plain(shape, dtype):
    arena = Arena()
    a = arena.tensor(shape, dtype)
    assert (a.shape, a.dtype) == (torch.Size(shape), dtype)
    assert (arena.lent, arena.bytes) == (0, 0)
    arena.poison = True
    assert arena.tensor((7, 9)).isnan().all()
    assert arena.tensor((), torch.float64).isnan()


def test_a_view_keeps_the_memory():
    arena = Arena()
    view = arena.tensor((300, 1000)).fill_(7)[3:5, ::2]
    others = [arena.tensor((300, 1000)).fill_(i) for i in range(3)]
    assert arena.lent == 4
    assert (view == 7).all()
    del view
    assert arena.lent == 3
    assert [float(x.max()) for x in others] == [0, 1, 2]


def test_autograd_keeps_the_memory():
    arena = Arena()
    x = torch.ones(300, 1000, requires_grad=True)
    y = x * arena.tensor((300, 1000)).fill_(3)  # saved for backward, and nothing else holds it
    assert arena.lent == 1
    arena.tensor((300, 1000)).fill_(5)
    y.sum().backward()
    assert (x.grad == 3).all()
    del y
    assert arena.lent == 0

    class FromArena(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return arena.tensor(x.shape).copy_(x)

        @staticmethod
        def backward(ctx, grad):
            return arena.tensor(grad.shape).copy_(grad)

    x.grad = None
    (2 * FromArena.apply(x)).sum().backward()
    assert arena.lent == 1  # the gradient itself
    x.grad = None
    assert arena.lent == 0


def test_a_tensor_freed_by_another_thread():
    arena = Arena()
    tensors = [arena.tensor((300, 1000)) for _ in range(4)]
    worker = threading.Thread(target=tensors.clear)
    worker.start()
    worker.join()
    assert arena.lent == 0
    assert arena.release() == arena.bytes + 4 * 1_310_720


def test_a_tensor_freed_while_the_lock_is_held():
    """As the garbage collector does, which may run at any allocation."""
    arena = Arena()
    a = arena.tensor((300, 1000))
    with arena._lock:
        del a
    assert arena.lent == 0


def test_release_leaves_what_is_lent():
    arena = Arena()
    a = arena.tensor((300, 1000)).fill_(2)
    arena.tensor((300, 1000), torch.float64)
    assert arena.release() == 2_621_440
    assert (a == 2).all()
    del a
    assert arena.release() == 1_310_720
    assert arena.bytes == 0


def test_poisoned_tensors():
    arena = Arena()
    arena.tensor((300, 1000)).zero_()
    arena.poison = True
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        assert arena.tensor((600, 1000), dtype).isnan().all()


def test_threads_never_share_a_tensor():
    arena = Arena()
    failures = []

    def work(number):
        for _ in range(20):
            tensor = arena.tensor((300_000,)).fill_(number)
            failures.extend(tensor[tensor != number].tolist())

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures
    assert arena.lent == 0
