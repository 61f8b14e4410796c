"""What every test file shares."""
import pytest
import torch


@pytest.fixture(scope="module")
def one_thread():
    """Faster for models as small as these, and a process with one thread can be forked."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def same_threads():
    """A run sets the number of threads; the other tests keep theirs."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
