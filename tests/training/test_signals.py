"""Signals that ask to end are kept until a good place; a second one acts at once."""

import signal
import threading

import pytest

from mlx_transformer.training.signals import SIGNALS, defer_signals


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_kept_and_then_ends_as_it_would_have(number):
    before = signal.getsignal(number)
    with defer_signals() as interruption:
        assert interruption.signal is None
        interruption.end()
        signal.raise_signal(number)
        assert interruption.signal == number
    assert signal.getsignal(number) is before
    with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit) as ended:
        interruption.end()
    assert number == signal.SIGINT or ended.value.code == 143


def test_a_second_interrupt_acts_at_once():
    with defer_signals():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_in_another_thread_handlers_stay_as_they_are():
    seen = []

    def work():
        with defer_signals() as interruption:
            seen.append((signal.getsignal(signal.SIGINT), interruption.signal))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(signal.default_int_handler, None)]


def test_the_other_signal_is_kept_after_one():
    with defer_signals() as interruption:
        signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        signal.raise_signal(signal.SIGINT)
        assert interruption.signal == signal.SIGINT
