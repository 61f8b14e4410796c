"""What every test file shares."""
import pytest
import torch


@pytest.fixture(autouse=True)
def same_threads():
    """A run sets the number of threads; the other tests keep theirs."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
