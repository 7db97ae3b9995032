import pytest

from ..conftest import available
from .linear_cases import CASES, OFFERED, check

pytestmark = pytest.mark.usefixtures("poison")

VARIANTS = [
    ("binary", "rows"),
    ("binary", "packed"),
    ("binary", "panels"),
    ("levels2", "panels"),
    ("levels3", "rows"),
    ("levels4", "packed"),
    ("float", "rows"),
]


@pytest.mark.parametrize(
    "backend,dtype",
    [(b, d) for b in available() for d in OFFERED[b.partition("-")[0]]],
    indirect=["backend"],
)
@pytest.mark.parametrize("kind,form", VARIANTS)
@pytest.mark.parametrize("case", CASES)
def test_agrees_with_the_oracle(backend, case, kind, form, dtype):
    if backend == "triton" and min(CASES[case].block) < 16:
        pytest.skip("tl.dot takes no smaller block")
    check(CASES[case], kind, form, dtype)
