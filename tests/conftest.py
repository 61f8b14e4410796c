"""What every test file shares."""
import pytest
import torch

SLOW = ("test_tour.py", "test_levels.py", "test_wrong_answers", "test_the_recipes",
        "test_a_cheat", "test_a_class")                                       # left out without --slow


def pytest_addoption(parser):
    """python -m pytest --slow runs the tests of SLOW, too."""
    parser.addoption("--slow", action="store_true", help="also the tests that take longest")


def pytest_collection_modifyitems(config, items):
    """Tests of SLOW are skipped without --slow."""
    for item in items:
        if not config.getoption("--slow") and any(name in item.nodeid for name in SLOW):
            item.add_marker(pytest.mark.skip(reason="slow: python -m pytest --slow"))


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
