def test_demo(esl):
    code, out, _ = esl("demo", "--data", "digits", "--epochs", 3)
    assert code == 0
    for word in ("dense", "dense + mask", "esl_sparse", "accuracy", "memory", "state"):
        assert word in out


def test_minimal_example(start):
    process = start("examples/minimal.py", "digits")
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0, out
    assert "epoch 5" in out and "rewired at iteration" in out


def test_without_the_extra_it_names_the_command(start):
    program = (
        "import sys; sys.modules['click'] = None; from esl_sparse.cli import main; sys.exit(main(['info']))"
    )
    process = start("-c", program)
    out, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert out.strip() == 'esl-sparse: click is not installed: pip install "esl_sparse[train]"'
