"""The first SIGINT or SIGTERM is deferred; a second one acts at once."""

import signal
import threading

import pytest

from mlx_transformer.training.signals import SIGNALS, defer_signals


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_deferred(number):
    before = signal.getsignal(number)
    with defer_signals() as interruption:
        assert interruption.signal is None
        interruption.raise_error()
        signal.raise_signal(number)
        assert interruption.signal == number
    assert signal.getsignal(number) is before
    with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit) as error:
        interruption.raise_error()
    assert number == signal.SIGINT or error.value.code == 143


def test_a_second_interrupt_acts_at_once():
    with defer_signals():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_handlers_do_not_change_outside_the_main_thread():
    results = []

    def work():
        with defer_signals() as interruption:
            results.append((signal.getsignal(signal.SIGINT), interruption.signal))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert results == [(signal.default_int_handler, None)]


def test_a_second_signal_of_another_kind_is_deferred_too():
    with defer_signals() as interruption:
        signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        signal.raise_signal(signal.SIGINT)
        assert interruption.signal == signal.SIGINT
